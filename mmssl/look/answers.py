"""How a tab answers: one query of a run at a time, and a mistake of the user becomes a message on the page."""

import contextlib
import functools
import html
from collections.abc import Callable

from PIL import Image

from mmssl.errors import BadInput

SMALLEST = 160  # pixels: smaller images are shown enlarged, without smoothing


def answer(run, function: Callable) -> Callable:
    """`function` as the handler of an event."""

    @functools.wraps(function)
    def handler(*given):
        return _answered(run.asking, function, *given)

    return handler


def at_first(function: Callable) -> Callable:
    """`function` as the handler of the page's opening: it asks no model, so it does not wait for queries."""

    @functools.wraps(function)
    def handler():
        return _answered(contextlib.nullcontext(), function)

    return handler


def on_pick(run, function: Callable) -> Callable:
    """The handler of a click: `function` gets what was picked (a number; [row, column] of a table; [x, y] of an image),
    then the inputs."""
    import gradio as gr

    # no functools.wraps: Gradio gives the event to the argument that is annotated with its class
    def handler(event: gr.SelectData, *given):
        return _answered(run.asking, function, event.index, *given)

    handler.__name__ = function.__name__
    return handler


def _answered(turn, function: Callable, *given):
    import gradio as gr

    try:
        with turn:
            return function(*given)
    except BadInput as error:
        # the page renders messages as HTML, and this one may hold a caption or the name of a file
        raise gr.Error(html.escape(str(error)), print_exception=False) from error


def enlarged(image: Image.Image) -> Image.Image:
    """Of small images each pixel becomes a square."""
    times = SMALLEST // max(image.size)
    return image if times < 2 else image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
