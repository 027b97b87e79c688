"""Evaluates an encoder on labelled data, in one table with its baselines: the implementation of recipes/transfer.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from mmssl import bounded_json, durable, plain_text
from mmssl.data import labelled
from mmssl.data.columns import named
from mmssl.data.images.views import CROP, CROP_FLIP, WHOLE
from mmssl.data.labels import subset
from mmssl.device import best_device
from mmssl.errors import BadInput, not_written
from mmssl.evaluation.downstream import encoder as encoders
from mmssl.evaluation.downstream import linear_probe
from mmssl.evaluation.downstream.few_shot import few_shot, large_classes
from mmssl.evaluation.downstream.finetune import finetune
from mmssl.evaluation.downstream.knn import knn
from mmssl.evaluation.downstream.layer_transfer import FROZEN, TUNED, WAYS, layer_transfer, number_of_layers
from mmssl.evaluation.downstream.raw_features import NAMES, raw_features
from mmssl.evaluation.downstream.transfer_table import (
    CHANCE,
    OURS,
    RAW,
    SUPERVISED,
    UNTRAINED,
    Table,
    amount_of,
    cell,
    draw,
    intervals,
    layers_row,
    loss_name,
)
from mmssl.hub import card
from mmssl.hub.table import aligned, in_markdown
from mmssl.plain_text import say, say_lines
from mmssl.training.output_dir import OutputDir

AUGMENTATIONS = {
    "crop": replace(CROP, scale=(0.5, 1.0)),
    "crop_flip": replace(CROP_FLIP, scale=(0.5, 1.0)),
    "none": WHOLE,
}
OF_OTHERS = {  # flags without effect on an encoder of this modality
    "image": ("max_length", "max_seconds"),
    "video": ("max_length", "max_seconds"),
    "text": ("max_seconds", "augmentation"),
    "audio": ("max_length", "augmentation"),
}
OF_TASK = {"label_column": None, "hold_out": None, "input_column": None, "pooling": "auto", "tower": "vision"}

RESULTS, LOSSES = "results.json", "losses.safetensors"  # in output_dir
INDIFFERENT = {"output_dir", "use_cpu", "trust_remote_code"}  # flags that do not change the results
FEWEST_STEPS = 300  # of fine-tuning, however few the labels


class Transfer:
    """One encoder and its baselines on one data set."""

    def __init__(self, args) -> None:
        """args: those of recipes/transfer.py. Raises BadInput, before anything is computed, if they do not fit."""
        self.args = args
        view = AUGMENTATIONS[args.augmentation]
        ours = encoders.load(args.model_name_or_path, args.pooling, args.tower, args.trust_remote_code, view)
        args.refuse(OF_OTHERS[ours.modality], f"an encoder of {ours.modality}s")
        self.train, self.test = labelled.load(
            args.dataset, ours.modality, ours.processor, input_column=args.input_column, label_column=args.label_column,
            held_out=args.held_out, hold_out=args.hold_out, max_samples=args.max_samples, max_length=args.max_length,
            max_seconds=args.max_seconds, frames=ours.frames,
        )  # fmt: skip
        self.subsets = {
            amount: [subset(self.train.label, amount, seed) for seed in range(args.seeds)] for amount in args.labels
        }
        self.warnings = [*self._overlap(), *self._lost_classes(), *self._other_amounts()]
        for sentence in self.warnings:
            say(f"warning: {sentence}")
        if "layer_transfer" in args.mode:
            number_of_layers(ours)
        if "few_shot" in args.mode:
            large_classes(self.test.label.numpy(), args.ways, max(args.shots))
        self.device = best_device(args.use_cpu)
        self.raw_name = NAMES[ours.modality]
        self.encoders = {OURS: ours.to(self.device)}
        self.losses: dict[str, list[np.ndarray]] = {}  # of linear probes on each test example, see `loss_name`
        if UNTRAINED in args.baselines:
            self.encoders[UNTRAINED] = ours.untrained().to(self.device)
        most_frequent = torch.bincount(self.train.label).argmax()
        self.chance = 100 * (self.test.label == most_frequent).float().mean().item()

    def _overlap(self) -> list[str]:
        shared = labelled.overlap(self.train, self.test)
        if len(shared) == len(self.test):
            raise BadInput(
                f"--dataset {self.args.dataset}: every test example is also a training example, byte for byte; choose "
                "other test data with --hold_out"
            )
        if not shared:
            return []
        sentence = (
            f"{len(shared)} of {len(self.test)} test examples are also training examples, byte for byte (the first is "
            f"number {shared[0]}): the results may be too good"
        )
        return [sentence]

    def _lost_classes(self) -> Iterator[str]:
        """Of which all training rows were unreadable, or beyond --max_samples."""
        lost = self.test.label[~torch.isin(self.test.label, self.train.label)]
        if len(lost):
            names = named([self.train.names[int(label)] for label in lost.unique()])
            yield f"{len(lost)} test examples are of classes without a training example ({names}): they count as wrong"

    def _other_amounts(self) -> Iterator[str]:
        """Where there are fewer labels than asked for, or more, because every class keeps one."""
        counts = self.train.label.bincount()
        counts = counts[counts > 0]
        for amount, (rows, *_) in self.subsets.items():
            if not amount.endswith("%") and (few := int((counts < int(amount)).sum())):
                yield (
                    f"--labels {amount}: {few} of {len(counts)} classes have fewer training examples, the smallest "
                    f"{int(counts.min())}; all of theirs are used"
                )
            elif amount.endswith("%") and len(rows) > 1.5 * float(amount[:-1]) / 100 * len(self.train):
                yield (
                    f"--labels {amount}: {len(rows)} of {len(self.train)} training examples are used, because every "
                    "class keeps one at least"
                )

    def columns(self) -> list[str]:
        asked = {
            OURS: True,
            UNTRAINED: UNTRAINED in self.args.baselines,
            SUPERVISED: "layer_transfer" in self.args.mode,
            self.raw_name: self._with_raw and self.args.mode != ["layer_transfer"],
            CHANCE: CHANCE in self.args.baselines,
        }
        return [name for name in asked if asked[name]]

    @property
    def _with_raw(self) -> bool:
        return RAW in self.args.baselines

    def run(self) -> Table:
        table: Table = {}
        for mode in self.args.mode:
            for row, column, value in {
                "knn": lambda: self._probe("k-NN", self._knn),
                "linear": lambda: self._probe("linear", self._linear),
                "few_shot": self._few_shot,
                "finetune": self._finetune,
                "layer_transfer": self._layer_transfer,
            }[mode]():
                table.setdefault(row, {}).setdefault(column, []).append(value)
        return table

    def _features(self) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
        """(column, layer, training features, test features)."""
        for column, encoder in self.encoders.items():
            train, test = (
                encoders.features(encoder, part, self.args.batch_size, self.args.layers)
                for part in (self.train, self.test)
            )
            for layer, (x, z) in enumerate(zip(train, test, strict=True)):
                yield column, f", layer {layer}" * (self.args.layers == "all"), x.numpy(), z.numpy()
        if self._with_raw:
            yield self.raw_name, "", *self._raw

    @cached_property
    def _raw(self) -> tuple[np.ndarray, np.ndarray]:
        return raw_features(self.train, self.test)

    @cached_property
    def _raw_linear(self) -> dict[str, list[float]]:
        """The linear probe on raw features, for each amount of labels. Also a baseline of fine-tuning."""
        return {
            amount: [accuracy for accuracy, _ in self._classify(self._linear, amount, *self._raw)]
            for amount in self.subsets
        }

    def _probe(self, name: str, classify: Callable) -> Iterator[tuple[str, str, float]]:
        for column, layer, x, z in self._features():
            for amount in self.subsets:
                row = f"{name}, {amount_of(amount)}{layer}"
                if column == self.raw_name and name == "linear":
                    yield from ((row, column, accuracy) for accuracy in self._raw_linear[amount])
                    continue
                for accuracy, losses in self._classify(classify, amount, x, z):
                    if losses is not None:
                        self.losses.setdefault(loss_name(row, column), []).append(losses)
                    yield row, column, accuracy
        for amount in self.subsets:
            yield from self._chance(f"{name}, {amount_of(amount)}", self.chance)

    def _chance(self, row: str, accuracy: float) -> Iterator[tuple[str, str, float]]:
        if CHANCE in self.args.baselines:
            yield row, CHANCE, accuracy

    def _classify(
        self, classify: Callable, amount: str, x: np.ndarray, z: np.ndarray
    ) -> Iterator[tuple[float, np.ndarray | None]]:
        """(accuracy on the test features z, losses of the test examples if `classify` has any), for each draw of
        `amount` training examples. x, z: (examples, width)."""
        for seed, rows in enumerate(self._distinct(self.subsets[amount])):
            predicted, losses = classify(x[rows.numpy()], self.train.label[rows].numpy(), z, seed)
            yield self._accuracy(torch.from_numpy(predicted)), losses

    def _knn(self, x: np.ndarray, label: np.ndarray, z: np.ndarray, seed: int) -> tuple[np.ndarray, None]:
        return knn(x, label, z), None

    def _linear(self, x: np.ndarray, label: np.ndarray, z: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        probe = linear_probe.fit(x, label, seed)
        return probe.predict(z), linear_probe.losses(probe, z, self.test.label.numpy())

    def _how(self, labels: int) -> dict:
        """Arguments of finetune.fit, for training on so many labels. A few need many passes: a pass is then only a few
        steps."""
        args = self.args
        passes = math.ceil(args.num_train_epochs * labels / args.batch_size)
        steps = args.max_steps if args.max_steps > 0 else max(FEWEST_STEPS, passes)
        return {
            "steps": steps, "batch_size": args.batch_size, "learning_rate": args.learning_rate,
            "weight_decay": args.weight_decay, "early_stopping": args.early_stopping, "use_cpu": args.use_cpu,
        }  # fmt: skip

    def _layer_transfer(self) -> Iterator[tuple[str, str, float]]:
        donors = {OURS: (self.encoders[OURS], WAYS)}
        if UNTRAINED in self.args.baselines:
            donors[UNTRAINED] = self.encoders[UNTRAINED], (FROZEN,)  # fine-tuned, it is the network from scratch
        for amount, seeds in self.subsets.items():
            for seed, rows in enumerate(seeds):
                labels = self.train.select(rows)
                found = layer_transfer(donors, SUPERVISED, labels, self.test, seed, **self._how(len(rows)))
                for layers, way, donor, predicted in found:
                    yield layers_row(layers, way, amount), donor, self._accuracy(predicted)
            yield from self._chance(layers_row(0, TUNED, amount), self.chance)

    def _finetune(self) -> Iterator[tuple[str, str, float]]:
        args = self.args
        pretrained = {  # from scratch there is nothing to preserve: all layers train at one rate
            "linear_probing": True, "layer_decay": args.layer_decay, "frozen": args.freeze_layers,
        }  # fmt: skip
        for amount, seeds in self.subsets.items():
            for seed, rows in enumerate(seeds):
                compared = [(OURS, self.encoders[OURS], pretrained)]
                if UNTRAINED in args.baselines:
                    compared.append((UNTRAINED, self.encoders[OURS].untrained(seed).to(self.device), {}))
                for column, encoder, options in compared:
                    say(f"fine-tuning: {column}, {amount_of(amount)}, seed {seed}")
                    labels = self.train.select(rows)
                    predicted = finetune(encoder, labels, self.test, seed=seed, **self._how(len(rows)), **options)
                    yield f"fine-tuned, {amount_of(amount)}", column, self._accuracy(predicted)
            for accuracy in self._raw_linear[amount] if self._with_raw else ():
                yield f"fine-tuned, {amount_of(amount)}", self.raw_name, accuracy
            yield from self._chance(f"fine-tuned, {amount_of(amount)}", self.chance)

    def _few_shot(self) -> Iterator[tuple[str, str, float]]:
        args = self.args
        for column, layer, x, z in self._features():
            centre = np.asarray(x.mean(0)).ravel()
            z = z.toarray() if hasattr(z, "toarray") else z
            for shots in args.shots:
                accuracy, half = few_shot(z, self.test.label.numpy(), centre, args.ways, shots, args.episodes)
                row = f"{args.ways}-way {shots}-shot{layer}"
                yield row, column, accuracy
                yield f"{row}, 95 % confidence ±", column, half
        for shots in args.shots:
            yield from self._chance(f"{args.ways}-way {shots}-shot", 100 / args.ways)

    def _distinct(self, seeds: list[Tensor]) -> list[Tensor]:
        """The draws that differ: with all labels every seed gives the same probe, so one is enough."""
        return seeds[:1] if len(seeds[0]) == len(self.train) else seeds

    def _accuracy(self, predicted: Tensor) -> float:
        return 100 * (predicted == self.test.label).float().mean().item()


def main(args) -> None:
    """Compute, print and draw the results; write them to `results.json` in output_dir and to the checkpoint's card, and
    the losses of linear probes on each test example, (seeds, examples), to `losses.safetensors`."""
    from accelerate import PartialState

    if PartialState(cpu=best_device(args.use_cpu).type == "cpu").num_processes > 1:
        raise BadInput("an evaluation runs in one process: start it with python, or with --num_processes 1")
    directory = Path(args.output_dir).expanduser()
    _refuse_loss(directory, vars(args))
    transfer = Transfer(args)
    OutputDir(directory).register([RESULTS, LOSSES])
    table = transfer.run()
    columns = transfer.columns()
    title = (
        f"{args.model_name_or_path} on {len(transfer.test):,} test examples of {args.dataset}{chosen(args)}, "
        f"{len(transfer.train.names)} classes, {len(transfer.train):,} training labels"
    )
    say(title)
    cells = {row: [cell(values.get(column)) for column in columns] for row, values in table.items()}
    say_lines(aligned(columns, cells))
    found_intervals = intervals(table)
    for row, of_columns in found_intervals.items():
        if row.startswith(("fine-tuned", "layer transfer")):
            each = (f"{column} {low:.1f} to {high:.1f}" for column, (low, high) in of_columns.items())
            say(f"95 % interval of the mean over seeds, {row}: {', '.join(each)}")
    found = {
        "title": title,
        "results": table,
        "intervals": found_intervals,
        "command": card.command_line(),
        "args": vars(args),
    }
    found["warnings"] = transfer.warnings
    try:
        losses = {name: torch.from_numpy(np.stack(of_seeds)) for name, of_seeds in transfer.losses.items()}
        durable.replace(directory / LOSSES, save(losses))
        durable.replace(directory / RESULTS, bounded_json.dumps(found, indent=2))
    except OSError as error:
        raise not_written(directory / RESULTS, error) from error
    counts = {amount: len(rows[0]) for amount, rows in transfer.subsets.items()}
    drawn = draw(table, columns, counts, card.short(args.dataset) + chosen(args), directory)
    name = Path(args.model_name_or_path)
    if (name / card.CARD).exists():
        warnings = "".join(f"\n\nWarning: {sentence}." for sentence in transfer.warnings)
        units = "Accuracy in per cent, mean ± standard deviation over seeds."
        body = f"{plain_text.markdown(title)}. {units}\n\n{in_markdown(columns, cells)}{warnings}"
        best = {row: mean(values[OURS]) for row, values in table.items() if OURS in values and "±" not in row}
        task = card.short(args.dataset) + chosen(args)
        card.add_results(name, f"Transfer to {task}: {', '.join(args.mode)}", body, best, args.dataset, drawn, task)
        say(f"added to {name / card.CARD}")
    say(f"results and figures: {directory}")


def _refuse_loss(directory: Path, flags: dict) -> None:
    """Raise BadInput if `directory` holds results of other flags, which may have taken hours. More modes, labels or
    baselines are allowed: those that are there are computed again."""
    try:
        before = dict(bounded_json.read(directory / RESULTS)["args"])
    except (OSError, ValueError, KeyError, TypeError):  # none, or damaged
        return

    def lost(was, now) -> bool:
        return not {*was} - {"none"} <= {*now} if isinstance(now, list) else was != now

    def said(value) -> str:
        return " ".join(map(str, value)) if isinstance(value, list) else str(value)

    both = {name: (before[name], flags[name]) for name in flags if name in before and name not in INDIFFERENT}
    if changed := [f"--{name} {said(was)}, not {said(now)}" for name, (was, now) in both.items() if lost(was, now)]:
        raise BadInput(f"--output_dir {directory} holds results with {'; '.join(changed)}: choose another directory")


def chosen(args) -> str:
    """The flags that make it another task or another encoder, where they are not the usual ones."""
    return "".join(f", {name} {getattr(args, name)}" for name in OF_TASK if getattr(args, name) != OF_TASK[name])
