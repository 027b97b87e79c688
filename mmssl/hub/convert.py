"""Convert pickled weights (pytorch_model.bin), which mmssl does not read, to model.safetensors.

python -m mmssl.hub.convert DIRECTORY                          writes model.safetensors into DIRECTORY
python -m mmssl.hub.convert user/name --output DIRECTORY       downloads; writes a new directory without the pickles

A pickle can run code. torch.load(weights_only=True) accepts little more than tensors; it runs in a separate process
without this one's environment. Each shard becomes one file. Tied weights are written under each of their names. No file
is overwritten.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from huggingface_hub import snapshot_download

from mmssl import bounded_json
from mmssl.arguments import explained
from mmssl.data.atomic import whole
from mmssl.errors import BadInput
from mmssl.models.pretrained import JSON_FILES, ask_hub, said_by_hub
from mmssl.plain_text import say

PICKLE, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
TARGET, TARGET_INDEX = "model.safetensors", "model.safetensors.index.json"
OTHER_FILES = [*JSON_FILES, "*.txt", "*.model", "*.jinja", "README.md", "LICENSE*"]  # of a checkpoint on the Hub
KEPT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "TMPDIR", "SYSTEMROOT")  # environment variables; no tokens
# imports torch and safetensors only; arguments: pickle, safetensors file
PROGRAM = """
import sys
import torch
from safetensors.torch import save_file

found = torch.load(sys.argv[1], map_location="cpu", weights_only=True)
if not isinstance(found, dict) or not found:
    sys.exit(f"it holds a {type(found).__name__}, not tensors by name")
if wrong := [name for name, value in found.items() if not isinstance(name, str) or not torch.is_tensor(value)]:
    sys.exit(f"it holds other things than tensors, {wrong[0]!r} first")
seen, apart = set(), {}
for name, value in found.items():
    storage = value.untyped_storage().data_ptr()
    apart[name] = value.detach().clone().contiguous() if storage in seen else value.detach().contiguous()
    seen.add(storage)
save_file(apart, sys.argv[2], {"format": "pt"})
"""


def convert(directory: Path, output: Path) -> list[Path]:
    """Write the weights of `directory` to the directory `output`, which may be the same; returns the files.

    Raises BadInput if there is no pickle, if one holds anything but named tensors, or if a file is in the way.
    """
    shards = _shards(directory)
    if there := [name for name in (*shards.values(), TARGET, TARGET_INDEX) if (output / name).exists()]:
        raise BadInput(f"{output / there[0]} already exists and is not overwritten: remove it, or use --output")
    with tempfile.TemporaryDirectory(dir=output, prefix=".convert-") as place:
        for pickle, name in shards.items():
            _read_apart(directory / pickle, Path(place, name))
        if len(shards) > 1 or TARGET not in shards.values():
            index = bounded_json.read(directory / INDEX)
            index["weight_map"] = {key: shards[file] for key, file in index["weight_map"].items()}
            Path(place, TARGET_INDEX).write_text(json.dumps(index, indent=2))
        for file in sorted(Path(place).iterdir()):
            file.rename(output / file.name)
    return [output / name for name in shards.values()]


def _shards(directory: Path) -> dict[str, str]:
    """{pickle: its safetensors file}, as names without a folder."""
    if (directory / PICKLE).is_file():
        return {PICKLE: TARGET}
    if not (directory / INDEX).is_file():
        raise BadInput(f"{directory} holds neither {PICKLE} nor {INDEX}: nothing to convert")
    try:
        names = sorted(set(bounded_json.read(directory / INDEX)["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{directory / INDEX} is damaged: {error!r}") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not (directory / name).is_file():
            raise BadInput(f"{directory / INDEX} names {name!r}, which is not a file in that directory")
    return {name: Path(name).stem.replace("pytorch_model", "model") + ".safetensors" for name in names}


def _read_apart(pickle: Path, target: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(pickle.resolve()), str(target.resolve())],
        env={name: os.environ[name] for name in KEPT if name in os.environ},
        cwd=target.parent,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        cause = next((line for line in lines if "Unsupported" in line or "GLOBAL" in line), lines[-1])
        raise BadInput(f"{pickle} is not converted: {cause.strip()}")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mmssl.hub.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", metavar="DIRECTORY", help="a directory or a Hub id")
    parser.add_argument("--output", type=Path, help="a new directory; default: the directory of the pickles")
    given = parser.parse_args()
    with explained():
        try:
            written = _convert_to(_local(given.name, given.output), given.output)
        except OSError as error:
            raise BadInput(error) from error
    for file in written:
        say(file)


def _local(name: str, output: Path | None) -> Path:
    if Path(name).is_dir():
        return Path(name)
    if output is None:
        raise BadInput(f"{name} is not a local directory; for a Hub checkpoint, say where to write with --output")
    try:
        ask_hub(name)
        return Path(snapshot_download(name, allow_patterns=["pytorch_model*.bin", INDEX, *OTHER_FILES]))
    except Exception as error:  # the Hub client raises many kinds
        raise BadInput(f"{name}: no such directory, and the Hub answered: {said_by_hub(error)}") from error


def _convert_to(directory: Path, output: Path | None) -> list[Path]:
    if output is None:
        return convert(directory, directory)
    with whole(output) as place:
        for file in directory.iterdir():
            if file.is_file() and not file.name.startswith("pytorch_model"):
                shutil.copy(file, place)
        written = convert(directory, place)
    return [output / file.name for file in written]


if __name__ == "__main__":
    main()
