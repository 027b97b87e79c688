"""Leaderboard: trains every method that learns from the data's modality alone, and judges all encoders alike.

python recipes/leaderboard.py                                                # images: scikit-learn's digits, built in
python recipes/leaderboard.py --dataset paragraphs                           # text: of Wikipedia articles, built in
python recipes/leaderboard.py --dataset voices                               # audio: synthetic voices, built in
python recipes/leaderboard.py --dataset cifar10.parquet --minutes 15         # hours
python recipes/leaderboard.py --dataset my_folder --methods simclr dino --encoders facebook/dinov2-small

The columns of the data decide whether it is images, audio or text. Each method is trained by its recipe, with the
recipe's defaults, for an equal number of passes over the data or for an equal time; then recipes/transfer.py judges its
encoder with labels that it has not seen in training. Rows without training: raw features (pixels, tf-idf, log-mel),
chance, encoders before training (methods with equal encoders share a row), and any other encoder. The inputs of test
examples may have been seen in training, without their labels: all of those of --hold_out, and, if the data has no test
part, some.

Whatever is finished is kept: the same command continues where it was stopped, and with other --labels it trains nothing
again. It uses one device. A pass of Exemplar-CNN is one over the 4,000 images at most that are its classes; what each
method has seen is in the table.

The first command takes 7 min 10 s on two free cores of an EPYC (Zen 4) in bf16. The tables are in recipes/README.md.
With so few passes they do not rank the methods.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields
from pathlib import Path

from mmssl import forked
from mmssl.arguments import Flags, TrainArgs, command, flag, recipe, run_recipe
from mmssl.data import columns, sources
from mmssl.data.labels import subset, with_labels
from mmssl.errors import BadInput
from mmssl.evaluation.downstream import board
from mmssl.evaluation.downstream.board import Row
from mmssl.evaluation.downstream.transfer_table import CHANCE, OURS, RAW, UNTRAINED
from mmssl.plain_text import say, say_lines
from mmssl.training.output_dir import METRICS
from mmssl.training.signals import interruptible

RECIPES = Path(__file__).parent
SPEED_STEPS = 30
INPUTS = {"image": columns.IMAGE, "audio": columns.AUDIO, "text": columns.TEXT}  # modality -> usual columns
OF_INPUTS = {"image_column", "audio_column", "text_column", "caption_column", "video_column"}  # flags of recipes


@dataclass
class LeaderboardArgs(Flags):
    dataset: str = flag(
        "digits", "labelled data: digits, mnist5k, paragraphs, voices (built in), a file, a folder or a Hub id"
    )
    output_dir: str = flag("runs/leaderboard", "where the table, its figure and the runs go")
    methods: list[str] = flag(["all"], "names of recipes; all: every recipe that learns from such data alone")
    encoders: list[str] = flag(["none"], "other encoders to judge: directories or Hub ids")
    passes: float = flag(1.5, "passes over the data that each method is trained for", above=0, at_most=10**6)
    minutes: float | None = flag(None, "train for this time instead, by the speed of the first steps", above=0)
    labels: list[str] = flag(["1%", "10%", "100%"], "percentages of the training labels, or numbers per class")
    seeds: int = flag(3, "number of draws of the labels", at_least=1, at_most=1000)
    label_column: str | None = flag(None, "column of labels; default: the first column with a usual name")
    hold_out: str | None = flag(None, "test on exactly the rows with these values: speaker=theo,lucas")
    use_cpu: bool = flag(False, "use the CPU even if there is a GPU")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.minutes:
            self.refuse(("passes",), f"--minutes {self.minutes:g}")


def modality_of(args: LeaderboardArgs) -> str:
    """Raises BadInput if the data has no labels, or no inputs that an encoder reads."""
    data = sources.load(args.dataset)
    names = data["train"].column_names
    columns.find(names, args.label_column, columns.LABEL, "label", f"--dataset {args.dataset}: ")
    found = [modality for modality, usual in INPUTS.items() if {*usual} & {*names}]
    if not found:
        usual = "; ".join(f"{modality}: {', '.join(names)}" for modality, names in INPUTS.items())
        raise BadInput(f"--dataset {args.dataset}: none of its columns {', '.join(names)} holds inputs ({usual})")
    _, (train, _), _ = with_labels(data, args.label_column, hold_out=args.hold_out)
    for amount in args.labels:
        subset(train, amount, seed=0)  # raises what can be wrong with it
    return found[0]


def learning_from(modality: str) -> list[str]:
    """The names of the recipes that learn from such data alone."""
    listed = {file.stem: recipe(file)[1] for file in sorted(RECIPES.glob("*.py"))}
    inputs = {name: OF_INPUTS & {f.name for f in fields(flags)} for name, flags in listed.items()}
    return [name for name, flags in listed.items()
            if issubclass(flags, TrainArgs) and inputs[name] == {f"{modality}_column"}]  # fmt: skip


def run(name: str, args: LeaderboardArgs, directory: Path, *flags: str) -> None:
    """Run a recipe in a process of its own. Raises forked.Failed."""
    argv = [f"--dataset={args.dataset}", f"--output_dir={directory}", *flags, *["--use_cpu"] * args.use_cpu]
    say(f"python {RECIPES.name}/{name}.py {shlex.join(argv)}")
    forked.run(run_recipe, RECIPES / f"{name}.py", argv)


def train(name: str, args: LeaderboardArgs, directory: Path) -> Row:
    """Train by the recipe, unless it has finished. Returns the cells on training."""
    if not (directory / METRICS).exists():
        length, speed = f"--num_train_epochs={args.passes}", directory.parent / "speed" / name
        if args.minutes:
            if not (speed / METRICS).exists():
                steps = (f"--max_steps={SPEED_STEPS}", "--save_steps=0", "--overwrite_output_dir=True")
                run(name, args, speed, *steps, "--probe_dataset=none")
            length = f"--max_steps={max(1, int(60 * args.minutes * board.steps_per_second(speed)))}"
        run(name, args, directory, length, "--probe_dataset=none", "--resume_from_checkpoint=auto")
    return board.of_training(directory)


def judge(encoder: str, args: LeaderboardArgs, directory: Path, baselines: list[str]) -> dict[str, Row]:
    """The columns of transfer.py's table, unless they are known already."""
    found = board.of_transfer(directory)
    if OURS not in found or {*baselines} - {RAW} - found.keys():  # raw is asked for with chance
        given = {"label_column": args.label_column, "hold_out": args.hold_out}
        flags = [f"--{name}={value}" for name, value in given.items() if value is not None]
        flags += ["--labels", *args.labels, f"--seeds={args.seeds}", "--baselines", *(baselines or ["none"])]
        run("transfer", args, directory, f"--model_name_or_path={encoder}", *flags)
        found = board.of_transfer(directory)
    return found


def add(rows: dict[str, Row], name: str, trains: bool, args: LeaderboardArgs, place: Path, known: set[str]) -> None:
    """The row of a method, which trains, or of another encoder, and those of baselines that the table has not yet.
    known: the architectures whose untrained encoders are in it."""
    rows[name], baselines = {}, [] if CHANCE in rows else [RAW, CHANCE]
    try:
        if trains:
            rows[name] |= train(name, args, place / name)
            kind, architecture = board.architecture(place / name)
            baselines += [UNTRAINED] * (architecture not in known)
        encoder = str(place / name) if trains else name
        directory = place / "transfer" / board.of_labels(args) / name.strip("/").replace("/", "_")
        found = judge(encoder, args, directory, baselines)
        judged = found.pop(OURS)
        notes = [row[board.NOTE] for row in (rows[name], judged) if row.get(board.NOTE)]
        rows[name] |= judged | {board.NOTE: "; ".join(notes)}
        untrained = found.pop(UNTRAINED, None)
        if untrained and architecture not in known:
            known.add(architecture)
            rows[f"untrained {kind} of {name}"] = untrained
        rows |= found
    except forked.Failed as error:
        rows[name][board.NOTE] = f"failed: {error}"


def main(args: LeaderboardArgs) -> None:
    place, modality = Path(args.output_dir).expanduser(), modality_of(args)
    recipes = learning_from(modality)
    chosen = recipes if args.methods == ["all"] else args.methods
    if unknown := [name for name in chosen if name not in recipes]:
        raise BadInput(
            f"--methods {unknown[0]}: no recipe of that name learns from {modality} data alone; {', '.join(recipes)} do"
        )
    rows, known = {}, set()
    with interruptible(f"the same command continues; what is finished is kept in {place}"):
        board.claim(place, args, ("dataset", "passes", "minutes"))
        for name in [*chosen, *(each for each in args.encoders if each != "none")]:
            add(rows, name, name in chosen, args, place, known)
            board.write(rows, place)  # now, for a run that is stopped
    say_lines(board.write(rows, place))


if __name__ == "__main__":
    command(main, LeaderboardArgs, __doc__)
