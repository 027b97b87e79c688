"""Tables of results, with a column for the trained model and one for each baseline: for the terminal and the card."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mmssl.plain_text import markdown, say, say_lines

Columns = dict[str, dict[str, float]]  # column -> name of a result -> value
NARROWEST = 12  # characters of a column in the terminal


def print_table(title: str, columns: Columns, digits: int | None = None) -> None:
    """digits: decimal places; default: see `number`."""
    rows = {
        name: [number(values[name], digits) if name in values else "" for values in columns.values()]
        for name in _names(columns)
    }
    say(title)
    say_lines(aligned(columns, rows))


def results_table(results: Columns) -> str:
    """Markdown with a row for each result and a column for the trained model and each baseline."""
    rows = {
        readable(name): [number(column[name]) if name in column else "–" for column in results.values()]
        for name in _names(results)
    }
    return in_markdown([*results], rows)


def aligned(columns: Iterable[str], rows: Mapping[str, Sequence[str]]) -> str:
    """A table as lines for the terminal. rows: name -> a cell for each column."""
    lines = {"": [*columns]} | rows
    width = max(map(len, lines)) + 2
    widths = [max(NARROWEST, 2 + max(map(len, cells))) for cells in zip(*lines.values(), strict=True)]
    return "\n".join(
        name.ljust(width) + "".join(cell.rjust(wide) for cell, wide in zip(cells, widths, strict=True))
        for name, cells in lines.items()
    )


def in_markdown(columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """The same for a card."""
    lines = [["", *columns], *([name, *cells] for name, cells in rows.items())]
    first, *others = (f"| {' | '.join(map(markdown, line))} |" for line in lines)
    return "\n".join([first, "|---" + "|---:" * len(columns) + "|", *others])


def readable(name: str) -> str:
    """image_to_text_R@1 -> Image to text R@1"""
    words = name.replace("_", " ")
    return words[:1].upper() + words[1:]


def number(value: float | None, digits: int | None = None) -> str:
    """The value, rounded; a dash for None, which metrics.json holds for a result that could not be computed."""
    if value is None:
        return "–"
    if digits is None:  # three that tell something, of small values too, and at most four decimal places
        size = abs(float(f"{value:.3g}"))  # as it is rounded: .9999 is 1.00
        digits = 1 if size >= 10 else 2 if size >= 1 or size == 0 else 3 if size >= 0.1 else 4
    return f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: without the sign of a rounded zero


def _names(results: Columns) -> list[str]:
    return list(dict.fromkeys(name for column in results.values() for name in column))
