"""Text from outside (file names, captions, samples, what libraries say) as nothing but text, wherever it is shown: in a
line of the terminal, in Markdown, in a block or a literal of code.

Each function is called once, where the text enters; what is kept (log.jsonl, metrics.json) is kept as it came.
"""

from __future__ import annotations

import json
import re
import sys
from contextlib import suppress
from typing import TextIO

# control characters (a terminal obeys them), line and paragraph separators, marks that reverse the order of what is
# read, and halves of a surrogate pair (bytes of a file name that are no UTF-8), which no file and no terminal takes
_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# what means something to Markdown or HTML where it stands inside of a line; "<" and "&" only where they do; "_" not
# inside of a word, and "[" not where no link follows: snake_case and [MASK] stay readable
_MARKED = re.compile(
    r"[`*|~$]|\\(?=[!-/:-@\[-`{-~]|$)|(?<![^\W_])_|_(?![^\W_])|\](?=[(\[:])|<(?=[a-zA-Z/!?])|&(?=#?\w+;)|^[-+=#>]"
)
_ESCAPED = re.compile(r"\\([`*|~$\\_\]<&\-+=#>])")
LONGEST = 2000  # characters of a line of the terminal


def one_line(text: object) -> str:
    """What cannot be seen is written out: "\\x1b", "\\n"."""
    return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode(), str(text))


def lines(text: object) -> str:
    """As `one_line`, but line feeds and tabs stay."""
    return "\n".join("\t".join(map(one_line, line.split("\t"))) for line in re.split(r"\r?\n", str(text)))


def markdown(text: object) -> str:
    """For a line of Markdown, a cell of a table: one line that is rendered as the text itself."""
    return _MARKED.sub(lambda match: "\\" + match[0], one_line(text))


def code(text: object) -> str:
    """A span of code in a line of Markdown; in a table, too."""
    shown = one_line(text).replace("|", "\\|")
    fence = _longer(shown, 1)
    return f"{fence} {shown} {fence}" if "`" in shown else f"{fence}{shown}{fence}"


def fenced(text: object, language: str = "") -> str:
    """A block of code in Markdown, behind a fence that the text does not hold."""
    shown = lines(text)
    fence = _longer(shown, 3)
    return f"{fence}{language}\n{shown}\n{fence}"


def python_string(text: str) -> str:
    """A literal in double quotes, on one line."""
    literal = json.dumps(text, ensure_ascii=False)  # other than JSON, Python has no pairs of \u escapes
    return _UNSEEN.sub(lambda match: f"\\u{ord(match[0]):04x}", literal)


def say(text: object, to: TextIO | None = None) -> None:
    """Print one line, by default on stdout. A terminal that is closed, or has not these letters, ends no run."""
    _print(shortened(one_line(text)), to or sys.stdout)


def say_lines(text: object) -> None:
    """Print several lines on stdout, as `say` prints one."""
    _print(lines(text), sys.stdout)


def say_markdown(text: str) -> None:
    """Print a text of the card, without what `markdown` put before marks: a terminal renders nothing."""
    parts = text.split("```")
    say_lines("```".join(part if i % 2 else _ESCAPED.sub(r"\1", part) for i, part in enumerate(parts)))


def shortened(text: str) -> str:
    """Without its middle where it is longer than LONGEST."""
    if len(text) <= LONGEST:
        return text
    return f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"


def counted(number: int, what: str) -> str:
    """ "1 core", "2 cores"."""
    return f"{number} {what}{'s' * (number != 1)}"


def _print(text: str, to: TextIO | None) -> None:
    if to is None:  # there is no terminal
        return
    encoding = to.encoding or "utf-8"
    with suppress(OSError, ValueError, RuntimeError):  # closed at the other end; closed here; in a signal, amid a print
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=to, flush=True)


def _longer(text: str, least: int) -> str:
    return "`" * max(least, 1 + max(map(len, re.findall("`+", text)), default=0))
