"""Leaderboard: trains every method that learns from images alone on the same images, and judges all encoders alike.

python recipes/leaderboard.py                                                    # scikit-learn's digits, built in
python recipes/leaderboard.py --dataset cifar10 --minutes 15                     # hours: see recipes/README.md
python recipes/leaderboard.py --dataset my_folder --methods simclr dino --encoders facebook/dinov2-small

Each method is trained by its recipe, with the recipe's defaults, for an equal number of images or for an equal time;
then recipes/transfer.py judges its encoder with labels that it has not seen in training. Rows without training: raw
pixels, the encoders before training, and any other encoder. The data must have a column of labels.

Whatever is finished is kept: the same command continues where it was stopped.
"""

from __future__ import annotations

import runpy
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from mmssl import bounded_json
from mmssl.arguments import Flags, command, flag
from mmssl.data.images import pictures
from mmssl.errors import BadInput
from mmssl.evaluation.downstream import board, transfer
from mmssl.evaluation.downstream.board import Row
from mmssl.models import image_encoders
from mmssl.plain_text import say, say_lines
from mmssl.training import log
from mmssl.training.output_dir import METRICS

RECIPES = Path(__file__).parent
SPEED_STEPS = 30


@dataclass
class LeaderboardArgs(Flags):
    dataset: str = flag("digits", "labelled images: digits, mnist5k (built in), a Parquet file, a folder, or a Hub id")
    output_dir: str = flag("runs/leaderboard", "where the table, its figure and the runs go")
    methods: list[str] = flag(["all"], "names of recipes; all: every recipe that learns from images alone")
    encoders: list[str] = flag(["none"], "other encoders to judge: directories or Hub ids")
    images: int = flag(10_000, "images that each method is trained on, counted again in each pass", at_least=1)
    minutes: float | None = flag(None, "train for this time instead, by the speed of the first steps", above=0)
    labels: list[str] = flag(["1%", "10%", "100%"], "percentages of the training labels, or numbers per class")
    seeds: int = flag(3, "number of draws of the labels", at_least=1, at_most=1000)
    use_cpu: bool = flag(False, "use the CPU even if there is a GPU")


def image_recipes() -> dict[str, type]:
    """{name of the recipe: class of its flags}, for those that learn from images alone."""
    names = sorted(path.stem for path in RECIPES.glob("*.py") if path != Path(__file__))
    found = {name: flags_of(name) for name in names}
    return {name: each for name, each in found.items() if issubclass(each, pictures.PictureArgs)}


def flags_of(name: str) -> type:
    """The class of a recipe's flags."""
    values = runpy.run_path(str(RECIPES / f"{name}.py"), run_name=name).values()
    return next(each for each in values if isinstance(each, type) and each.__module__ == name)


def train(name: str, directory: Path, args: LeaderboardArgs, batch: int) -> str:
    """Run the recipe, unless it has finished. Returns "failed" if it did not finish."""
    if (directory / METRICS).exists():
        return ""
    steps = args.images // batch
    if args.minutes:
        speed = directory.parent / "speed" / name
        if not (speed / METRICS).exists():
            launch(name, args, speed, SPEED_STEPS, "--save_steps=0", "--overwrite_output_dir=True")
        if not (speed / METRICS).exists():
            return "failed"
        steps = int(args.minutes * 60 * float(last(speed, "images_per_second")) / batch)
    return launch(name, args, directory, max(1, steps), "--resume_from_checkpoint=auto")


def launch(name: str, args: LeaderboardArgs, directory: Path, steps: int, *flags: str) -> str:
    flags = (f"--dataset={args.dataset}", f"--output_dir={directory}", f"--max_steps={steps}", *flags)
    flags += ("--use_cpu=True",) if args.use_cpu else ()
    say(f"accelerate launch {RECIPES.name}/{name}.py {shlex.join(flags)}")
    program = [sys.executable, "-m", "accelerate.commands.launch", str(RECIPES / f"{name}.py")]
    return "failed" if subprocess.run([*program, *flags]).returncode else ""


def last(directory: Path, name: str) -> float | str:
    """The last value of `name` in the log of a run; "" if it has none."""
    return next((line[name] for line in reversed(log.read(directory / "log.jsonl")) if name in line), "")


def judge(encoder: str, directory: Path, args: LeaderboardArgs, *baselines: str) -> dict[str, Row]:
    """{column of transfer.py's table: {evaluation: mean over seeds}}, unless it is known already."""
    if not (directory / transfer.RESULTS).exists():
        flags = {"model_name_or_path": encoder, "dataset": args.dataset, "output_dir": str(directory)}
        flags |= {"labels": args.labels, "seeds": args.seeds, "baselines": list(baselines), "use_cpu": args.use_cpu}
        transfer.main(flags_of("transfer")(**flags))
    columns: dict[str, Row] = {}
    for evaluation, values in bounded_json.read(directory / transfer.RESULTS)["results"].items():
        for column, of_seeds in values.items():
            columns.setdefault(column, {})[evaluation] = fmean(of_seeds)
    return columns


def baselines(args: LeaderboardArgs, place: Path, architectures: list[str]) -> dict[str, Row]:
    """The rows of what is not trained. They come first: data without labels are refused before anything is trained."""
    side, found = pictures.find(pictures.PictureArgs(dataset=args.dataset)).side, {}
    for name in architectures:
        directory = place / "untrained" / name
        if not (directory / "preprocessor_config.json").exists():
            for part in image_encoders.build(image_encoders.EncoderArgs(encoder=name), side):
                part.save_pretrained(directory)
        others = ("none",) if found else ("raw", "chance")
        columns = judge(str(directory), place / "transfer" / f"untrained {name}", args, *others)
        found[f"untrained {name}"] = columns.pop(transfer.OURS)
        found |= columns
    return found


def trained(name: str, args: LeaderboardArgs, place: Path, batch: int) -> Row:
    """Train by the recipe of that name, and judge its encoder."""
    directory = place / name
    if failed := train(name, directory, args, batch):
        return {"note": failed}
    metrics = bounded_json.read(directory / METRICS)
    seen, seconds = metrics["samples_seen"], metrics["training_seconds"]
    cost = {"effective rank": last(directory, "effective_rank"), "images": f"{seen:,}"}
    cost |= {"minutes": seconds / 60, "images/s": f"{seen / seconds:,.0f}"}
    said = {"note": " ".join(sentence.split(":")[0] for sentence in metrics["warnings"])}
    return judge(str(directory), place / "transfer" / name, args, "none")[transfer.OURS] | cost | said


def main(args: LeaderboardArgs) -> None:
    recipes, place = image_recipes(), Path(args.output_dir).expanduser()
    chosen = list(recipes) if args.methods == ["all"] else args.methods
    if unknown := [name for name in chosen if name not in recipes]:
        raise BadInput(
            f"--methods {unknown[0]}: no recipe of that name learns from images alone; {', '.join(recipes)} do"
        )
    flags = {name: recipes[name]() for name in chosen}
    # MAE has an encoder of its own, a ViT
    architectures = [getattr(each, "encoder", f"vit-{getattr(each, 'size', '')}") for each in flags.values()]
    found = baselines(args, place, list(dict.fromkeys(architectures)))
    for name, each in flags.items():
        found[name] = trained(name, args, place, each.per_device_train_batch_size)
        board.write(found, place)  # now, for a run that is stopped
    for encoder in [] if args.encoders == ["none"] else args.encoders:
        found[encoder] = judge(encoder, place / "transfer" / encoder.replace("/", "_"), args, "none")[transfer.OURS]
    say_lines(board.write(found, place))


if __name__ == "__main__":
    command(main, LeaderboardArgs, __doc__)
