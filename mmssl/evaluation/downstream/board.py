"""A table of many encoders with the same results for each: Markdown, CSV and a figure."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from statistics import fmean

from mmssl import bounded_json, durable, figures
from mmssl.errors import BadInput
from mmssl.evaluation.downstream.transfer import RESULTS
from mmssl.evaluation.downstream.transfer_table import OURS
from mmssl.hub.table import in_markdown, number
from mmssl.training import log
from mmssl.training.output_dir import METRICS, OutputDir

Row = dict[str, float | str]  # column -> value

NOTE = "note"  # the last column
SETTINGS = "leaderboard.json"
PER_SECOND = "_per_second"  # behind the unit of a method's examples, in log.jsonl
OF_NO_ARCHITECTURE = ("_name_or_path", "architectures", "auto_map", "dtype", "transformers_version")  # in config.json


def claim(place: Path, args, names: tuple[str, ...]) -> None:
    """Keep these flags; raise BadInput if the table in `place` was begun with others: its rows could not be
    compared."""
    given, file = {name: getattr(args, name) for name in names}, place / SETTINGS
    before = bounded_json.read(file) if file.exists() else given
    if changed := [name for name in names if before.get(name) != given[name]]:
        raise BadInput(
            f"--output_dir {place} holds a table with --{changed[0]} {before.get(changed[0])}, not "
            f"{given[changed[0]]}; choose another directory"
        )
    OutputDir(place).register([SETTINGS])
    durable.replace(file, bounded_json.dumps(given))


def architecture(run: Path) -> tuple[str, str]:
    """(its type: "resnet"; a text that is equal for exported encoders that are equal before training)."""
    config = bounded_json.read(run / "config.json")
    kept = {name: config[name] for name in sorted(config) if name not in OF_NO_ARCHITECTURE}
    return config["model_type"].removeprefix("mmssl_"), bounded_json.dumps(kept)


def steps_per_second(run: Path) -> float:
    """The speed of the last steps of a run: the first ones are slower."""
    *_, before, last = [line for line in log.read(run / "log.jsonl") if "seconds" in line]
    return (last["step"] - before["step"]) / (last["seconds"] - before["seconds"])


def of_training(run: Path) -> Row:
    """What a finished run has seen, its cost, the effective rank of its features, and what it warned of."""
    metrics, logged = bounded_json.read(run / METRICS), {}
    for line in log.read(run / "log.jsonl"):
        logged |= line
    unit = next(name.removesuffix(PER_SECOND) for name in logged if name.endswith(PER_SECOND))
    seen, seconds = metrics["samples_seen"], metrics["training_seconds"]
    row: Row = {"effective rank": logged.get("effective_rank", ""), "seen": f"{seen:,} {unit}"}
    row |= {"minutes": seconds / 60, "speed": f"{seen / seconds:,.0f} {unit}/s"}
    return row | {NOTE: "; ".join(sentence.split(":")[0] for sentence in metrics["warnings"])}


def of_labels(args) -> str:
    """The name of the folder with the results on these labels."""
    chosen = [*args.labels, f"{args.seeds} seeds", *filter(None, (args.label_column, args.hold_out))]
    return re.sub(r"[^\w.=-]", "_", " ".join(chosen))


def of_transfer(directory: Path) -> dict[str, Row]:
    """{column: {evaluation: mean over seeds}} of recipes/transfer.py's table in this directory; {} if there is none."""
    if not (directory / RESULTS).exists():
        return {}
    found: dict[str, Row] = {}
    written = bounded_json.read(directory / RESULTS)
    for evaluation, values in written["results"].items():
        for column, of_seeds in values.items():
            found.setdefault(column, {})[evaluation] = fmean(of_seeds)
    if written["warnings"] and OURS in found:
        found[OURS][NOTE] = "; ".join(written["warnings"])
    return found


def write(rows: dict[str, Row], place: Path) -> str:
    """Write the table as Markdown and CSV, and its figure, best row first. Returns the Markdown."""
    names = dict.fromkeys(column for row in rows.values() for column in row)
    columns = [*accuracies(names), *(name for name in names if name not in accuracies(names) and name != NOTE), NOTE]
    best = dict(sorted(rows.items(), key=lambda item: -max(accuracies(item[1]).values(), default=-1.0)))
    cells = [[name, *(cell(row.get(column, "")) for column in columns)] for name, row in best.items()]
    table = in_markdown(columns, {name: line for name, *line in cells})
    written = io.StringIO()
    csv.writer(written).writerows([["name", *columns], *cells])
    OutputDir(place).register(["leaderboard.md", "leaderboard.csv", "leaderboard.png"])
    durable.replace(place / "leaderboard.md", table + "\n")
    durable.replace(place / "leaderboard.csv", written.getvalue())
    if judged := {name: accuracies(row) for name, row in best.items() if accuracies(row)}:
        figures.ranking(judged, place / "leaderboard.png")
    return table


def accuracies(row: dict) -> dict:
    """Those of its columns that are accuracies."""
    return {name: value for name, value in row.items() if name.startswith(("k-NN", "linear"))}


def cell(value: float | str) -> str:
    return value if isinstance(value, str) else number(value)
