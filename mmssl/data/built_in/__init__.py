"""Data without a download, made on first use."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

_BUILDERS = {  # name -> module here, and its function
    "digits": ("digits", "build_digits"),
    "emoji": ("emoji", "build"),
    "mnist5k": ("digits", "build_mnist"),
    "noisy_voices": ("voices", "build_noisy"),
    "paragraphs": ("wikipedia", "build_paragraphs"),
    "voices": ("voices", "build"),
    "wikipedia": ("wikipedia", "build"),
}
BUILT_IN = tuple(_BUILDERS)
LABELLED = ("digits", "mnist5k", "noisy_voices", "paragraphs", "voices")  # with labels, for evaluation
DRAWN = {  # clips that are drawn when they are asked for: name -> (the digits that move in them, coloured)
    "moving_digits": ("digits", False),
    "moving_colours": ("digits", True),
    "moving_mnist": ("mnist5k", False),
}


def build(name: str, directory: Path) -> None:
    """Write the data called `name`, with a card, to `directory`."""
    module, function = _BUILDERS[name]
    getattr(import_module(f"mmssl.data.built_in.{module}"), function)(directory)


def licence(name: str) -> str:
    """The source of the data and its licence; "" if it is not built in."""
    name = DRAWN[name][0] if name in DRAWN else name
    if name not in _BUILDERS:
        return ""
    text = import_module(f"mmssl.data.built_in.{_BUILDERS[name][0]}").LICENCE
    return text[name] if isinstance(text, dict) else text
