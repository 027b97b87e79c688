"""The table of recipes/transfer.py: the names of its columns and rows, its intervals, its figures."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from mmssl import figures
from mmssl.evaluation.downstream.layer_transfer import WAYS

OURS, UNTRAINED, RAW, CHANCE = "this checkpoint", "untrained", "raw", "chance"  # the last three: of --baselines
SUPERVISED = "trained on these labels"  # a column of layer transfer

Table = dict[str, dict[str, list[float]]]  # row -> column -> a result for each seed, in per cent


def linear_row(amount: str) -> str:
    """The row of a table with the linear probes on this amount of labels."""
    return f"linear, {amount_of(amount)}"


def layers_row(layers: int | str, way: str, amount: str) -> str:
    return f"layer transfer, {amount_of(amount)}, {way}, lowest {layers}"


def amount_of(amount: str) -> str:
    """In words: 10% of the labels, 20 per class."""
    return f"{amount} of the labels" if amount.endswith("%") else f"{amount} per class"


def loss_name(row: str, column: str) -> str:
    """The name in losses.safetensors of the losses in a cell of the table."""
    return f"{row}: {column}"


def cell(values: list[float] | None) -> str:
    if not values:
        return "–"
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def intervals(table: Table) -> Table:
    """{row: {column: [low, high]}}: the 95 % interval of each mean over several seeds, by Student's t."""
    from scipy.stats import t

    found: Table = {}
    for row, columns in table.items():
        for column, values in columns.items():
            if len(values) > 1 and stdev(values) > 0:
                half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
                found.setdefault(row, {})[column] = [mean(values) - half, mean(values) + half]
    return found


def draw(
    table: Table, columns: Sequence[str], counts: dict[str, int], dataset: str, directory: Path
) -> dict[Path, str]:
    """Accuracy against the number of labels, and against the layer, if there are several. {file: caption}.

    counts: amount of labels, as in "10%" -> number of labels. dataset: its name, for captions and files.
    """
    drawn: dict[Path, str] = {}
    in_file = re.sub(r"[^\w.=-]+", "_", dataset)
    for mode in ("k-NN", "linear", "fine-tuned"):
        shown = {amount: table.get(f"{mode}, {amount_of(amount)}", {}) for amount in counts}
        if len(shown) > 1 and any(shown.values()):
            curves = {c: [(counts[a], v[c]) for a, v in shown.items() if c in v] for c in columns}
            file = directory / f"transfer_{in_file}_{mode.replace('-', '').lower()}.png"
            figures.accuracy_curves(curves, "training labels", file, log=True)
            drawn[file] = (
                f"Accuracy on {dataset}, {mode}, against the number of labels; bars: standard deviation over seeds."
            )
        for amount in counts:
            if curves := _by_number(table, f"{mode}, {amount_of(amount)}, layer ", (OURS, UNTRAINED)):
                file = directory / f"layers_{in_file}_{mode.replace('-', '').lower()}_{_in_file(amount)}.png"
                figures.accuracy_curves(curves, "layer (0: embeddings)", file)
                drawn[file] = f"Accuracy on {dataset} of a probe at each layer, {mode}, {amount_of(amount)}."
    for amount in counts:
        found = {way: _by_number(table, layers_row("", way, amount), (OURS, UNTRAINED, SUPERVISED)) for way in WAYS}
        curves = {f"{column}, {way}": points for way in WAYS for column, points in found[way].items()}
        if not curves:
            continue
        file = directory / f"layer_transfer_{in_file}_{_in_file(amount)}.png"
        figures.accuracy_curves(curves, "lowest layers that are copied (1: embeddings)", file)
        drawn[file] = (
            f"Accuracy on {dataset}, {amount_of(amount)}, of networks whose lowest layers are copied, then frozen or "
            "fine-tuned, and whose other layers are drawn anew."
        )
    return drawn


def _by_number(table: Table, start: str, columns: Sequence[str]) -> dict[str, list[tuple[int, list[float]]]]:
    """{column: [(number, values)]} of the rows whose name is `start` and a number, for columns that have any."""
    rows = {int(row.removeprefix(start)): values for row, values in table.items() if row.startswith(start)}
    found = {
        column: [(number, values[column]) for number, values in rows.items() if column in values] for column in columns
    }
    return {column: points for column, points in found.items() if points}


def _in_file(amount: str) -> str:
    return amount.rstrip("%") if amount.endswith("%") else f"{amount}_per_class"
