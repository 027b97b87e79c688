"""Tables of results, with a column for the trained model and one for each baseline: for the terminal and the card."""

from __future__ import annotations

from mmssl.plain_text import markdown, say

Columns = dict[str, dict[str, float]]  # column -> name of a result -> value


def print_table(title: str, columns: Columns, digits: int | None = None) -> None:
    """digits: decimal places; default: see `number`."""
    names = _names(columns)
    width, wide = max(map(len, names), default=0) + 2, max(18, 2 + max(map(len, columns)))
    say(title)
    say(" " * width + "".join(f"{column:>{wide}}" for column in columns))
    for name in names:
        cells = (number(values[name], digits) if name in values else "" for values in columns.values())
        say(f"{name:<{width}}" + "".join(f"{cell:>{wide}}" for cell in cells))


def results_table(results: Columns) -> str:
    """Markdown with a row for each result and a column for the trained model and each baseline."""
    lines = [f"| | {' | '.join(map(markdown, results))} |", "|---" + "|---:" * len(results) + "|"]
    for name in _names(results):
        cells = (number(column[name]) if name in column else "–" for column in results.values())
        lines.append(f"| {markdown(readable(name))} | {' | '.join(cells)} |")
    return "\n".join(lines)


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
