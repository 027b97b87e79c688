"""What holds for the code as a whole."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "mmssl"

# a module imports from its own room and from those above it in this list, never from those below
ROOMS = [
    "plain_text",  # text from outside, for terminal and Markdown
    "errors",  # what a user can mend
    "progress",  # bars, and lines in a log file
    "arguments",  # flags, and how a recipe becomes a command
    "forked",  # a function in a process of its own
    "device",  # where it runs
    "durable",  # files that survive a power cut
    "bounded_json",  # JSON that cannot end the process
    "kernels",  # fast arithmetic on tensors and arrays
    "distributed",  # other processes
    "method",  # the seam between a method and the loop
    "data",  # from files to batches
    "models",  # encoders and their tokenizers
    "training",  # the loop and what it keeps
    "figures",  # drawn from the log of a training
    "hub",  # what leaves a run
    "methods",  # each one file
    "evaluation",  # what an encoder is worth
    "pretrain",  # a whole run: data, method, loop, evaluation, export
    "look",  # a page over finished runs
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


# ---------------------------------------------------------------- recipes

RECIPES = PACKAGE.parent / "recipes"
HEAVY = ("transformers.modeling_utils", "transformers.tokenization_utils_base", "torch._dynamo", "accelerate",
         "datasets", "pyarrow", "pandas", "matplotlib", "sklearn", "scipy", "numba", "gensim")  # fmt: skip
NAMES = sorted(path.stem for path in RECIPES.glob("*.py"))


def below_the_docstring(name: str) -> list[str]:
    text = (RECIPES / f"{name}.py").read_text(encoding="utf-8")
    return text.splitlines()[ast.parse(text).body[0].end_lineno :]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_short(name):
    lines = below_the_docstring(name)
    on_images_alone = any(line.startswith("class ") and "pictures.PictureArgs" in line for line in lines)
    assert len(lines) <= (70 if on_images_alone else 150)


def test_no_six_lines_stand_in_two_recipes():
    seen: dict[tuple[str, ...], str] = {}
    for name in NAMES:
        lines = [line.strip() for line in below_the_docstring(name) if line.strip()]
        lines = [line for line in lines if not line.startswith(("from ", "import "))]
        for six in zip(*(lines[i:] for i in range(6)), strict=False):
            assert seen.setdefault(six, name) == name, f"{name} and {seen[six]} both hold\n" + "\n".join(six)


IMPORT_ALL = f"""
import json, runpy, sys
found = {{}}
for name in {NAMES}:
    runpy.run_path({str(RECIPES)!r} + "/" + name + ".py", run_name="imported")
    found[name] = [module for module in {HEAVY} if sys.modules.pop(module, None)]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def heavy_imports() -> dict[str, list[str]]:
    """{recipe: the slow modules that importing it imports}; one process imports them all."""
    ran = subprocess.run([sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_slow_to_import_is_not_imported_before_it_is_needed(name, heavy_imports):
    assert heavy_imports[name] == []


def test_tests_that_run_on_a_gpu_take_no_array_from_one():
    files = ["small.py", *(f"test_{name}.py" for name in ("every_method", "loop", "steps", "export", "checkpoint"))]
    for file in [*(TESTS / name for name in files), *(TESTS / "methods").glob("*.py"), *(TESTS / "tiny").glob("*.py")]:
        direct = [line for line in file.read_text().splitlines() if re.search(r"(?<!\.cpu\(\))\.numpy\(\)", line)]
        assert not direct, f"{file.name}: {direct}: a tensor of a GPU has no array: .cpu().numpy()"
        assert "Accelerator(cpu=True)" not in file.read_text() or file.name == "test_export.py", file.name
