"""Make one Markdown table of the results of finished runs, from their metrics.json and the results.json of transfer.

python -m mmssl.hub.results recipes/results/*.json --into recipes/README.md

The table replaces the text between two marks in that file; without --into it is printed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean

from mmssl import bounded_json
from mmssl.arguments import explained
from mmssl.errors import BadInput
from mmssl.hub.table import Columns, number, readable
from mmssl.plain_text import code, markdown, say_lines

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


def rows(file: Path) -> list[str]:
    """A table row for each result of the run, with its baselines. Raises BadInput if `file` is neither a metrics.json
    nor a results.json of recipes/transfer.py."""
    try:
        run = bounded_json.read(file)
        if "title" in run:  # of transfer: row -> column -> a value for each seed
            (_, trained), *baselines = _columns(run["results"]).items()
            cost = run["title"]
        else:
            (_, trained), *baselines = run["results"].items()
            cost = f"{run['steps']:,} steps, {run['training_seconds'] / 60:.0f} min, {run['hardware']}"
        command = run["command"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{file} is not the metrics.json of a finished run, nor a results.json: {error}") from error
    lines = []
    for name, value in trained.items():
        beside = "; ".join(f"{column} {number(values[name])}" for column, values in baselines if name in values)
        first = (markdown(file.stem), code(command), markdown(cost)) if not lines else ("", "", "")
        cells = (first[0], markdown(readable(name)), number(value), markdown(beside), first[2], first[1])
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _columns(results: dict[str, dict[str, list[float]]]) -> Columns:
    columns: Columns = {}
    for row, values in results.items():
        for column, of_seeds in values.items():
            columns.setdefault(column, {})[row] = fmean(of_seeds)
    return columns


def table(files: list[Path]) -> str:
    head = ["| run | result | trained | baselines | cost | command |", "|---|---|---:|---|---|---|"]
    return "\n".join([*head, *(line for file in files for line in rows(file))])


def write_into(document: Path, text: str) -> None:
    """Replace the text between the marks. Raises BadInput if the document lacks them."""
    before = document.read_text(encoding="utf-8")
    if BEGIN not in before or END not in before:
        raise BadInput(f"{document} lacks the line {BEGIN} or {END}: add both where the table should be")
    head, rest = before.split(BEGIN, 1)
    document.write_text(f"{head}{BEGIN}\n{text}\n{END}{rest.split(END, 1)[1]}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mmssl.hub.results", description=__doc__)
    parser.add_argument(
        "files", type=Path, nargs="+", help="metrics.json of finished runs; a row is named after its file"
    )
    parser.add_argument("--into", type=Path, help="a Markdown file with the two marks")
    given = parser.parse_args()
    with explained():
        text = table(sorted(given.files))
        if given.into:
            write_into(given.into, text)
        else:
            say_lines(text)


if __name__ == "__main__":
    main()
