"""The page: a tab for everything that a run can be asked, and one for the curves of all runs."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from contextlib import nullcontext
from importlib.util import find_spec
from typing import TYPE_CHECKING

from mmssl.errors import BadInput
from mmssl.look import (
    curves,
    feature_map,
    fill_mask,
    generation,
    images,
    reconstruction,
    sounds,
    texts,
    words,
    zero_shot,
)  # fmt: skip
from mmssl.look.run import Run
from mmssl.plain_text import markdown, say

if TYPE_CHECKING:
    from gradio import Blocks

# each has a TITLE; fits(run): whether the run can be asked this; prepare(run): load what the first answer needs;
# tab(run, page): draw it
TABS = (images, zero_shot, reconstruction, fill_mask, generation, words, sounds, texts, feature_map)
LOOPBACK = ("127.0.0.1", "localhost")
LARGEST_UPLOAD = "50mb"
KEPT = 3600  # seconds that the images of an answer stay on disk
CSS = """
.gradio-container { max-width: 1200px !important; margin: auto; }
.shown { min-height: 0 !important; }
.shown .grid-wrap { padding-top: 34px; min-height: 0 !important; max-height: none !important; height: auto !important; }
footer { display: none !important; }
"""


def show(
    names: list[str], dataset: str | None = None, host: str = LOOPBACK[0], port: int | None = None,
    started: float | None = None, **data,
) -> None:  # fmt: skip
    """Serve the page of some runs until Ctrl-C. data: the other arguments of `Run`. started: time.perf_counter() at the
    beginning, to say how long it took. Raises BadInput if a name is no run, or if nothing of it can be shown."""
    started = time.perf_counter() if started is None else started
    runs = [Run(name, dataset, **data) for name in names]
    page = build(runs)
    address = serve(page, host, port)
    if host not in LOOPBACK:
        say(f"--host {host}: other machines can open the page, and ask and see all that it shows")
    say(f"{address}  (after {time.perf_counter() - started:.1f} s; Ctrl-C ends it)")
    threading.Thread(target=prepare, args=[runs], daemon=True).start()
    page.block_thread()


def build(runs: list[Run]) -> Blocks:
    """The page of these runs. Reads no weights and no data. Raises BadInput if there is nothing to show."""
    if find_spec("gradio") is None:
        raise BadInput("the page needs the package gradio: pip install gradio")
    _keep_to_ourselves()
    import gradio as gr

    names, several = curves.names_of(runs), len(runs) > 1
    if not any(_fitting(run) for run in runs) and not curves.fits(runs):
        raise BadInput(f"{', '.join(names)}: nothing that a page could show; give data to look into with --dataset")
    title = f"{len(runs)} runs" if several else markdown(names[0])
    with gr.Blocks(title=f"mmssl: {', '.join(names)}", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as page:
        gr.Markdown(f"# {title}")
        with gr.Tabs():
            for run, name in zip(runs, names, strict=True):
                fitting = _fitting(run)
                # with several runs, a tab of tabs for each
                with gr.Tab(name) if several and fitting else nullcontext():  # noqa: SIM117
                    with gr.Tabs() if several and fitting else nullcontext():
                        for tab in fitting:
                            with gr.Tab(tab.TITLE):
                                tab.tab(run, page)
            if curves.fits(runs):
                with gr.Tab(curves.TITLE):
                    curves.tab(runs)
    return page


def prepare(runs: list[Run]) -> None:
    """Load what the first answers need, and compute the features, so that answers come at once."""
    for run in runs:
        for tab in _fitting(run):
            try:
                with run.asking:  # it uses the tokenizer, too
                    tab.prepare(run)
            except BadInput as error:
                say(f"warning: {run.name}: {tab.TITLE}: {error}", sys.stderr)
    say("ready")


def serve(page: Blocks, host: str = LOOPBACK[0], port: int | None = None) -> str:
    """Serve the page in a thread of this process, and return its address. Gradio serves only files that it wrote to its
    own folder. Under a loopback address, requests that a browser sends under another name (DNS rebinding) are refused.
    Raises BadInput if the port is taken."""
    import gradio as gr
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    guard = [Middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK))] if host in LOOPBACK else []
    system = ["system-ui", "sans-serif"]  # no font is loaded
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            share=False,
            inbrowser=False,
            prevent_thread_lock=True,
            quiet=True,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            enable_monitoring=False,
            run_history=False,
            footer_links=[],
            max_file_size=LARGEST_UPLOAD,
            app_kwargs={"middleware": guard, "docs_url": None, "redoc_url": None},
            theme=gr.themes.Default(font=system, font_mono=["ui-monospace", "monospace"], primary_hue="blue"),
            css=CSS,
        )
    except OSError as error:
        raise BadInput(f"--host {host} --port {port or 'from 7860 on'}: cannot listen there ({error})") from error
    return address


def _fitting(run: Run) -> list:
    return [tab for tab in TABS if tab.fits(run)]


def _keep_to_ourselves() -> None:
    """Nothing is reported to Gradio's authors. What is uploaded and shown lies in a folder of this process alone, which
    is deleted when it ends."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    if not _folders:
        _folders.append(tempfile.TemporaryDirectory(prefix="mmssl_look_", ignore_cleanup_errors=True))
    os.environ["GRADIO_TEMP_DIR"] = _folders[0].name


_folders: list[tempfile.TemporaryDirectory] = []
