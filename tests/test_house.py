"""What holds for the code as a whole."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "mmssl"

# a module imports from its own room and from those above it in this list, never from those below
ROOMS = [
    "errors",  # what a user can mend
    "kernels",  # fast arithmetic on tensors and arrays
    "distributed",  # other processes
    "method",  # the seam between a method and the loop
    "arguments",  # flags, and how a recipe becomes a command
    "data",  # from files to batches
    "models",  # encoders and their tokenizers
    "training",  # the loop and what it keeps
    "figures",  # drawn from the log of a training
    "hub",  # what leaves a run
    "methods",  # each one file
    "evaluation",  # what an encoder is worth
    "pretrain",  # a whole run: data, method, loop, evaluation, export
]


def modules() -> dict[str, Path]:
    """{"mmssl.training.loop": its file}; a package has the name of its folder."""
    names = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imports() -> dict[str, set[str]]:
    """{module: modules of mmssl that it imports}, inside of functions too."""
    files, found = modules(), {}
    for module, path in files.items():
        found[module] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found[module] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}:{node.lineno}: say the whole name of what is imported"
                inside = {f"{node.module}.{alias.name}" for alias in node.names}
                found[module] |= {name if name in files else node.module for name in inside}
        found[module] &= files.keys()
    return found


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_every_room_has_its_place_in_the_order():
    assert {room(module) for module in modules()} - {""} <= set(ROOMS)


def test_imports_go_downwards_only():
    order = {name: i for i, name in enumerate(["", *ROOMS])}
    upwards = [
        f"{module} imports {other}"
        for module, others in imports().items()
        for other in others
        if order[room(other)] > order[room(module)]
    ]
    assert not upwards


def test_no_module_imports_itself_through_others():
    TopologicalSorter(imports()).prepare()  # raises CycleError, which lists the circle
