"""Affinity: which encoder helps which task, and the best few encoders for all tasks (Taskonomy, arXiv:1804.08328).

python recipes/affinity.py --encoders runs/simclr runs/rotation runs/mae --tasks digits mnist5k --budget 2
python recipes/affinity.py --encoders runs/* --tasks cifar10 tasks/turn my_table.parquet#kind facebook_data/photos

Each encoder is judged on each task by recipes/transfer.py, with a linear probe; its results are kept, and results that
it has already computed elsewhere are read from the folders of --results. The same command continues where it was
stopped. data_scripts/image_tasks.py makes tasks from images: how they are turned, their colour, their contrast.

On half of the test examples, the shares of examples on which one encoder's probe has a smaller loss than another's
become one affinity per encoder and task (they add up to 1 in a task). For each budget up to --budget, the encoders with
the largest sum of affinities are chosen; the table has their losses on the other half, beside those of the average
encoder, of an encoder before training, and of the best encoder of each task in hindsight.

Eleven encoders of this project, trained on CIFAR-10 for a few minutes each, with fewer passes than the defaults; five
tasks, --labels 10% --max_samples 4000 --budget 4, seeds 0 to 2; accuracy in per cent, and affinity (.091 if all were
alike):

                       cifar10   fashion_mnist     digits      mnist5k       turn of CIFAR-10
    simclr           50.9 .154      73.2 .052   91.2 .028    91.4 .126      43.9 .086
    rotation         38.3 .075      74.3 .059   90.8 .062    90.5 .165      66.5 .129
    colorization     37.0 .079      73.5 .082   91.3 .045    87.8 .079      41.9 .085
    counting         35.0 .073      74.2 .118   89.7 .132    87.9 .052      43.1 .078
    jigsaw           29.1 .054      70.0 .085   87.4 .085    82.8 .141      35.8 .068
    split_brain      39.4 .077      71.7 .072   86.0 .013    81.6 .034      41.6 .081
    barlow_twins     47.1 .135      76.1 .117   91.3 .094    88.3 .068      46.6 .107
    byol             40.8 .099      73.8 .098   92.3 .083    89.5 .121      43.5 .090
    moco             40.1 .094      74.6 .107   92.9 .280    88.5 .068      45.2 .099
    swav             38.3 .090      72.6 .120   90.5 .105    85.8 .079      42.8 .090
    dino             34.3 .070      71.3 .090   91.9 .075    89.8 .068      44.3 .089
    before training  30.6           72.3        90.2         87.5           38.8
    chance           10.0            9.7        10.2         10.0           24.1

Chosen, with the loss on unseen examples in nats (the average encoder 1.059, before training 1.236, the best in
hindsight .766): moco alone 1.039; moco and rotation .908; moco, rotation and simclr .785; with swav .836. The seeds
alone choose other sets (of three: rotation, colorization, moco; rotation, counting, barlow_twins; simclr, barlow_twins,
moco). On CIFAR-10 and its turns, affinities deviate by .01 to .05 over seeds; on the digits by .1: where nearly all
examples are right, the more confident probe wins, and how confident it is depends on the draw of its few labels. Choose
by such tasks only with more labels.
"""

from __future__ import annotations

import runpy
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from mmssl import bounded_json, durable
from mmssl.arguments import Flags, command, flag
from mmssl.errors import BadInput, not_written
from mmssl.evaluation.downstream import affinity, transfer, transfer_table
from mmssl.hub.card import command_line
from mmssl.plain_text import say, say_lines
from mmssl.training.output_dir import OutputDir

FILES = ("affinity.json", "affinity.png")
SAME = ("model_name_or_path", "dataset", "label_column", "labels", "seeds", "max_samples", "held_out", "hold_out",
        "layers", "pooling", "tower", "input_column")  # fmt: skip


@dataclass
class AffinityArgs(Flags):
    encoders: list[str] = flag(["runs/simclr", "runs/rotation"], "the sources: directories or Hub ids, two or more")
    tasks: list[str] = flag(
        ["digits"], "labelled data: built-in names, files, folders or Hub ids; data#column of labels"
    )
    output_dir: str = flag("runs/affinity", "where the figure, affinity.json and the results of transfer.py go")
    results: list[str] = flag(["none"], "folders with earlier results of transfer.py, which need not be computed again")
    budget: int = flag(3, "largest number of encoders to choose", at_least=1)
    labels: str = flag("10%", "percentage of the training labels, or number per class, of a probe")
    seeds: int = flag(3, "number of draws of the labels", at_least=1, at_most=1000)
    max_samples: int = flag(0, "use only this many training and test examples of each task; 0: all", at_least=0)
    use_cpu: bool = flag(False, "use the CPU even if there is a GPU")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("encoders", "tasks"):
            if repeated := [each for each in getattr(self, name) if getattr(self, name).count(each) > 1]:
                raise BadInput(f"--{name} {repeated[0]}: given twice")
        if len(self.encoders) < 2:
            raise BadInput(f"--encoders {self.encoders[0]}: give two or more, to compare them")


def judged(encoder: str, task: str, args: AffinityArgs, *baselines: str) -> Path:
    """The folder with the results of one encoder on one task, which are computed if there are none. baselines: columns
    to compute beside the encoder's."""
    dataset, _, column = task.partition("#")
    directory = Path(args.output_dir).expanduser() / "transfer" / plain(encoder) / plain(task)
    flags = {"model_name_or_path": encoder, "dataset": dataset, "label_column": column or None, "mode": ["linear"]}
    flags |= {"labels": [args.labels], "seeds": args.seeds, "max_samples": args.max_samples, "use_cpu": args.use_cpu}
    chosen = plain("_".join([args.labels, f"{args.seeds}_seeds", f"{args.max_samples}_samples", *baselines]))
    flags |= {"baselines": list(baselines), "output_dir": str(directory / chosen)}  # those of other flags are kept
    recipe = runpy.run_path(str(Path(__file__).parent / "transfer.py"), run_name="transfer")
    wanted = recipe["TransferArgs"](**flags)
    known = [Path(each).expanduser() for each in args.results if args.results != ["none"]]
    found = (file.parent for place in (directory, *known) for file in sorted(place.rglob(transfer.RESULTS)))
    if (kept := next((each for each in found if holds(each, wanted)), None)) is None:
        transfer.main(wanted)
    return kept or directory / chosen


def holds(directory: Path, wanted) -> bool:
    """Whether transfer.py has left there what `wanted`, its flags, would compute, and with the weights as they are."""
    try:
        written = bounded_json.read(directory / transfer.RESULTS)
        same = all(written["args"].get(name) == getattr(wanted, name) for name in SAME)
        cells = written["results"][transfer_table.linear_row(wanted.labels[0])]
        asked = {transfer_table.UNTRAINED, transfer_table.CHANCE}.intersection(wanted.baselines)
        age = (directory / transfer.LOSSES).stat().st_mtime
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or those of an earlier version
        return False
    weights = Path(wanted.model_name_or_path).glob("*.safetensors")
    return same and asked <= cells.keys() and all(file.stat().st_mtime <= age for file in weights)


def plain(name: str) -> str:
    """A name that a folder can have."""
    return name.strip("/").replace("/", "_")


def read(directory: Path, labels: str, column: str) -> tuple[float, np.ndarray]:
    """(accuracy in per cent, mean over seeds; losses (seeds, test examples)) in a column of transfer.py's table."""
    from safetensors.numpy import load_file

    row = transfer_table.linear_row(labels)
    accuracy = fmean(bounded_json.read(directory / transfer.RESULTS)["results"][row][column])
    return accuracy, load_file(directory / transfer.LOSSES)[transfer_table.loss_name(row, column)]


def short(names: list[str]) -> list[str]:
    """The last part of each path, or the whole paths if two would be the same."""
    parts = [Path(name).name for name in names]
    return parts if len(set(parts)) == len(parts) else names


def main(args: AffinityArgs) -> None:
    place, sources, targets = Path(args.output_dir).expanduser(), short(args.encoders), short(args.tasks)
    OutputDir(place).register(FILES)
    table: dict[str, list[float]] = {name: [] for name in (*sources, transfer_table.UNTRAINED, transfer_table.CHANCE)}
    losses, untrained = [], []  # of each task: (sources, seeds, examples), (seeds, examples)
    for task in args.tasks:
        rows = []
        for number, (name, encoder) in enumerate(zip(sources, args.encoders, strict=True)):
            first = (transfer_table.UNTRAINED, transfer_table.CHANCE) if number == 0 else ("none",)
            directory = judged(encoder, task, args, *first)
            accuracy, of_examples = read(directory, args.labels, transfer_table.OURS)
            rows.append(of_examples)
            table[name].append(accuracy)
            if number == 0:
                accuracy, before = read(directory, args.labels, transfer_table.UNTRAINED)
                untrained.append(before)
                results = bounded_json.read(directory / transfer.RESULTS)["results"]
                chance = fmean(results[transfer_table.linear_row(args.labels)][transfer_table.CHANCE])
                table[transfer_table.UNTRAINED].append(accuracy)
                table[transfer_table.CHANCE].append(chance)
            if of_examples.shape != rows[0].shape:
                raise BadInput(f"--tasks {task}: {encoder} was tested on other examples; choose another --output_dir")
        losses.append(np.stack(rows))
    found = affinity.study(losses, untrained, args.budget)
    title = f"linear probes on {args.labels} of the labels, {args.seeds} draws of them (seeds 0 to {args.seeds - 1})"
    say(f"Accuracy in per cent, {title}")
    say_lines(affinity.printed(table, targets))
    say_lines(found.text(sources, targets))
    content = {"title": title, "encoders": args.encoders, "tasks": args.tasks, "accuracy": table, **found.content()}
    content |= {"command": command_line(), "args": vars(args)}
    try:
        durable.replace(place / FILES[0], bounded_json.dumps(content, indent=2))
    except OSError as error:
        raise not_written(place / FILES[0], error) from error
    found.draw(sources, targets, place / FILES[1])
    say(f"figure and results: {place}")


if __name__ == "__main__":
    command(main, AffinityArgs, __doc__)
