"""A table of many encoders with the same results for each: Markdown, CSV and a figure."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from mmssl import durable, figures
from mmssl.hub.table import number
from mmssl.plain_text import markdown
from mmssl.training.output_dir import OutputDir

Row = dict[str, float | str]  # column -> value


def write(rows: dict[str, Row], place: Path) -> str:
    """Write the table as Markdown and CSV, and its figure, best row first. Returns the Markdown."""
    columns = [c for c in dict.fromkeys(c for row in rows.values() for c in row) if c != "note"] + ["note"]
    best = dict(sorted(rows.items(), key=lambda item: -max(accuracies(item[1]).values(), default=-1.0)))
    cells = [[name, *(cell(row.get(column, "")) for column in columns)] for name, row in best.items()]
    lines = [f"| {' | '.join(map(markdown, line))} |" for line in (["", *columns], *cells)]
    lines.insert(1, "|---" + "|---:" * len(columns) + "|")
    written = io.StringIO()
    csv.writer(written).writerows([["name", *columns], *cells])
    OutputDir(place).register(["leaderboard.md", "leaderboard.csv", "leaderboard.png"])
    durable.replace(place / "leaderboard.md", "\n".join(lines) + "\n")
    durable.replace(place / "leaderboard.csv", written.getvalue())
    figures.ranking({name: accuracies(row) for name, row in best.items() if accuracies(row)}, place / "leaderboard.png")
    return "\n".join(lines)


def accuracies(row: Row) -> dict[str, float]:
    """The accuracies of a row."""
    return {name: value for name, value in row.items() if name.startswith(("k-NN", "linear"))}


def cell(value: float | str) -> str:
    return value if isinstance(value, str) else number(value)
