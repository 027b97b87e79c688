"""The output directory of a run, and the list of the files that the run wrote: only these are ever deleted, overwritten
or uploaded.

    .mmssl/manifest.json   the files that the run wrote, evaluations of it included, and the process of the run
    .mmssl/manifest.lock   held by a process while it changes the manifest
    .mmssl/lock            held by the run that is writing
    .mmssl/partial/        files that are being written, before they are moved into place

A file is registered before it is written. After a crash the manifest may name a file that does not exist, but every
file that exists is in it.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from mmssl import bounded_json, durable
from mmssl.errors import BadInput, first_line, not_written

CHECKPOINTS, METRICS, OURS = "checkpoints", "metrics.json", ".mmssl"
SPACE = "space"  # the page of the model, a repository of its own on the Hub
FOLDERS = (CHECKPOINTS, "figures", "logs", "pretraining", OURS)
# patterns of the files that a run writes; a method's other files are checked when they are moved into place
WRITTEN = (
    "README.md", METRICS, "log.jsonl", "config.json", "generation_config.json", "model*.safetensors",
    "model.safetensors.index.json", "*processor_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "modules.json",
    "sentence_bert_config.json", "config_sentence_transformers.json", "1_Pooling/config.json", "vectors.bin",
    "vectors.txt", "counts.txt", "pretraining/*", "figures/loss.png", f"{CHECKPOINTS}/step_*",
)  # fmt: skip
AT_HOME = (CHECKPOINTS, "logs", OURS, SPACE)  # folders that are never uploaded with the model
OF_A_CHECKPOINT = ("method.safetensors", "optimizer_*.safetensors", "buffers_*.safetensors", "state.json", "SHA256SUMS")


class OutputDir:
    """A directory, which need not exist. If it is a link, everything here applies to its target."""

    def __init__(self, directory: str | Path) -> None:
        self.named = Path(directory)  # as the user wrote it
        try:
            self.path = self.named.resolve()
        except (OSError, RuntimeError):  # a circle of links; `check` reports it
            self.path = self.named.absolute()
        self.manifest = self.path / OURS / "manifest.json"

    @classmethod
    def around(cls, file: Path) -> OutputDir | None:
        """The run directory that contains `file`, or None."""
        parents = file.absolute().parents
        return next((cls(path) for path in parents if (path / OURS / "manifest.json").is_file()), None)

    # ------------------------------------------------------------ before the run

    def check(self, args) -> None:
        """Raise BadInput if the directory cannot be written, if another process is writing to it, or if files would be
        lost that `args` (a TrainArgs) does not ask to overwrite. Changes nothing; call it before anything expensive."""
        try:
            for path in (self.named, *self.named.absolute().parents):
                if path.is_symlink() and not path.exists():
                    raise BadInput(f"--output_dir {self.named}: {path} is a broken link; repair or remove it")
            existing = next(path for path in (self.path, *self.path.parents) if path.exists())
            tempfile.TemporaryFile(dir=existing).close()  # the directory is made later: a refused run leaves nothing
        except OSError as error:
            raise BadInput(f"--output_dir {self.named} cannot be written to ({error}); choose another") from error
        self._refuse_data_around(args.dataset)
        lock = self._lock()
        if os.path.lexists(lock.lock_file) and not lock.is_locked:
            self._acquire(lock)
            lock.release()
        resume, checkpoints = args.resume_from_checkpoint, self.path / CHECKPOINTS
        any_there = any(path.is_dir() for path in checkpoints.glob("step_*"))
        self._refuse_loss(args, any_there if resume == "auto" else bool(resume) and self._holds(Path(resume)))

    def _refuse_loss(self, args, continues: bool) -> None:
        """continues: True if the run in this directory is the one that is resumed."""
        own, overwrites = self.files(), args.overwrite_output_dir and not continues
        unlisted = not self.manifest.exists() and (
            (self.path / METRICS).exists() or any((self.path / CHECKPOINTS).glob("step_*"))
        )
        finished = (self.path / METRICS).exists()
        holds_run = unlisted or any(os.path.lexists(self.path / name) for name in own)
        if unlisted and continues:
            own = self._of_earlier_version()
        elif unlisted and overwrites:
            raise BadInput(
                f"--output_dir {self.named} holds a run without a list of its files (from an earlier version of mmssl, "
                "or copied without .mmssl/), so your own files there cannot be distinguished from it. Delete it "
                "yourself, or choose another directory"
            )
        # with "auto" and no checkpoint yet, an unfinished run starts again
        elif holds_run and not (continues or overwrites or (args.resume_from_checkpoint == "auto" and not finished)):
            if finished:
                without = "" if (self.path / CHECKPOINTS).is_dir() else ", without checkpoints to resume from"
                raise BadInput(
                    f"--output_dir {self.named} already holds a finished run{without}. Choose another directory, or "
                    "delete that run with --overwrite_output_dir."
                )
            raise BadInput(
                f"--output_dir {self.named} holds the checkpoints or the log of an unfinished run. Continue it with "
                "--resume_from_checkpoint auto, choose another directory, or delete it with --overwrite_output_dir."
            )
        if foreign := self._in_the_way(own):
            raise BadInput(
                f"--output_dir {self.named}: {listed(foreign)} would be overwritten, and no run of this directory "
                "wrote it. Move it away, or choose another directory"
            )
        if overwrites:
            self._refuse_inputs(args, own)

    def _refuse_data_around(self, dataset: str) -> None:
        """Raise BadInput if the directory lies in the folder of the data: the next run would read its files as data."""
        for part in filter(None, dataset.split(",")):
            with suppress(OSError, RuntimeError):
                folder = Path(part).expanduser().resolve()
                if folder.is_dir() and self.path.is_relative_to(folder):
                    raise BadInput(
                        f"--output_dir {self.named} lies in --dataset {part}, and the next run would read its files as "
                        "data; choose another"
                    )

    def _in_the_way(self, own: set[str]) -> list[str]:
        found = [path for pattern in WRITTEN for path in self.path.glob(pattern)]
        foreign = {self._name(path) for path in found if not self._owned(path, own)}
        folders = (self.path / name for name in FOLDERS)
        return sorted(foreign | {path.name for path in folders if path.exists() and not path.is_dir()})

    def _owned(self, path: Path, own: set[str]) -> bool:
        """A folder belongs to the run if it is empty or if the run wrote a file in it."""
        name = self._name(path)
        if path.is_dir() and not path.is_symlink():
            is_folder = name.startswith((f"{CHECKPOINTS}/", "pretraining/"))
            return is_folder and (not any(path.iterdir()) or any(file.startswith(f"{name}/") for file in own))
        return name in own

    def _refuse_inputs(self, args, own: set[str]) -> None:
        """Raise BadInput if --overwrite_output_dir would delete an input of the run (data, a model to start from)."""
        for flag, value in vars(args).items():
            parts = value.split(",") if isinstance(value, str) and flag not in ("output_dir", "hub_model_id") else []
            for part in filter(None, parts):
                with suppress(OSError, RuntimeError):
                    place = Path(part).expanduser().resolve()
                    inside = place.exists() and place.is_relative_to(self.path)
                    if inside and any((self.path / name).is_relative_to(place) for name in own):
                        raise BadInput(
                            f"--{flag} {value} lies in the run that --overwrite_output_dir would delete; choose "
                            "another --output_dir"
                        )

    def _holds(self, checkpoint: Path) -> bool:
        return checkpoint.expanduser().resolve().parent == (self.path / CHECKPOINTS).resolve()

    def _of_earlier_version(self) -> set[str]:
        """The files that certainly belong to a run without a manifest: its log and its checkpoints."""
        patterns = [f"{kind}_*/{name}" for kind in ("step", "partial") for name in OF_A_CHECKPOINT]
        found = [file for pattern in patterns for file in (self.path / CHECKPOINTS).glob(pattern)]
        return {self._name(file) for file in (*found, *self.path.glob("log.jsonl"))}

    # ------------------------------------------------------------ the run

    def begin(self, args, resumed_from: Path | None) -> None:
        """Lock the directory until the process ends or `release`, and delete the files of a run that is overwritten.
        Raises what `check` raises, because the directory may have changed since."""
        continues = resumed_from is not None and self._holds(resumed_from)
        new = not self.path.exists()
        try:
            (self.path / OURS).mkdir(parents=True, exist_ok=True)
            lock = self._lock()
            if not lock.is_locked:
                self._acquire(lock)
                atexit.register(lock.release, force=True)  # also keeps the lock from being garbage-collected
            with self.changing():
                if self.manifest.exists():
                    self._write(self.files(), begins=True)
                if not new:
                    self._refuse_loss(args, continues)
                if args.overwrite_output_dir and not continues:
                    self.remove(self.files())
                adopted = self._of_earlier_version() if continues and not self.manifest.exists() else set()
                self._write(self.files() | adopted)
        except OSError as error:
            raise not_written(self.path, error) from error

    def release(self) -> None:
        """Let another process write here."""
        self._lock().release(force=True)

    def _lock(self) -> FileLock:
        """One lock object per directory in this process: a process that holds the lock can take it again."""
        return FileLock(self.path / OURS / "lock", is_singleton=True, thread_local=False)

    def _acquire(self, lock: FileLock) -> None:
        try:
            lock.acquire(timeout=1)  # second: a run that is just starting has then written its name
        except Timeout as error:
            try:
                held = bounded_json.read(self.manifest)
                by = f"process {held['process']} on {held['host']}"
            except (OSError, ValueError, KeyError, TypeError):
                by = "another process"
            raise BadInput(
                f"--output_dir {self.named} is being written to by {by}: wait for that run to end, or choose another "
                "directory"
            ) from error
        except OSError as error:
            raise BadInput(f"{lock.lock_file} cannot be locked ({first_line(error)}); remove it") from error

    # ------------------------------------------------------------ what the run wrote

    def files(self) -> set[str]:
        """The files that the run registered and has not removed, relative to the directory. Raises BadInput if the
        manifest is damaged."""
        try:
            names = bounded_json.read(self.manifest)["files"]
            # paths outside the directory are ignored, whoever wrote them
            return {name for name in names if not (name.startswith("/") or ".." in Path(name).parts)}
        except (FileNotFoundError, NotADirectoryError):
            return set()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(
                f"{self.manifest}, the list of the files that the run wrote, cannot be read ({first_line(error)}). "
                "Choose another directory, or delete this one yourself"
            ) from error

    def publishable(self) -> tuple[list[str], list[str]]:
        """(the run's files to upload, all other files in the directory). Neither includes checkpoints, the tracker's
        logs and .mmssl/; links are not followed, and never uploaded."""
        own, files, others = self.files(), [], []
        for folder, folders, names in os.walk(self.path):  # follows no links
            here = Path(folder)
            links = [name for name in folders if (here / name).is_symlink()]
            folders[:] = [name for name in folders if self._name(here / name) not in AT_HOME]
            for name in sorted(names + links):
                path = here / name
                (files if self._name(path) in own and not path.is_symlink() else others).append(self._name(path))
        return sorted(files), sorted(others)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Wraps a block that reads a file which several processes change, the manifest or the card, and writes it
        again: one process or thread at a time is inside. A thread may enter it again."""
        with self._alone(self.manifest):
            yield

    @contextmanager
    def _alone(self, file: Path) -> Iterator[None]:
        """One process or thread at a time has the lock of this file of ours."""
        lock = FileLock(file.with_suffix(".lock"), is_singleton=True)
        try:
            lock.acquire()
        except OSError as error:
            raise not_written(file, error) from error
        try:
            yield
        finally:
            lock.release()

    def register(self, files: Iterable[str | Path]) -> None:
        """Add files that are about to be written to the manifest. Raises BadInput if one exists that the run did not
        write."""
        with self.changing():
            own = self.files()
            paths = [self.path / file for file in files]
            names = {self._name(path) for path in paths if not path.is_relative_to(self.path / OURS)}
            if foreign := sorted(name for name in names - own if os.path.lexists(self.path / name)):
                raise BadInput(
                    f"{self.named}: {listed(foreign)} would be overwritten, and the run did not write it. Move it "
                    "away, then run the same command again (a training with --resume_from_checkpoint auto)"
                )
            if wrong := sorted(name for name in names if (self.path / name).is_dir()):
                raise BadInput(
                    f"{self.named}: {listed(wrong)} is a folder, but the run writes a file there; move it away"
                )
            if not names <= own:
                self._write(own | names)

    def adopt(self, files: Iterable[Path]) -> None:
        """Add files to the manifest that the run has already written under free names."""
        with self.changing():
            self._write(self.files() | {self._name(self.path / file) for file in files})

    def remove(self, files: Iterable[str | Path]) -> None:
        """Delete `files`, and files in those folders, that the run wrote; then delete folders that became empty."""
        with self.changing():
            gone, own = [self._name(self.path / file) for file in files], self.files()
            names = {name for name in own if name in gone or any(str(parent) in gone for parent in Path(name).parents)}
            for name in names:
                with suppress(FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError):
                    (self.path / name).unlink()
            parents = {parent for name in names for parent in Path(name).parents} - {Path()}
            for parent in sorted({*map(Path, gone), *parents}, key=lambda path: -len(path.parts)):
                with suppress(OSError):  # not empty
                    (self.path / parent).rmdir()
            left = {name for name in names if os.path.lexists(self.path / name)}
            if names - left:
                self._write(own - (names - left))

    @contextmanager
    def writing(self, needed: int | None = None) -> Iterator[Path]:
        """An empty folder for new files. If the block ends without an error, they are moved into the output directory
        and registered; otherwise they are deleted and the old files stay. needed: approximate bytes, for the message.

        Raises BadInput if the disk is full, or if a file of the user is in the way; in that case the new files stay in
        the folder.
        """
        partial = self.path / OURS / "partial"
        with self._alone(partial), self._moved(partial, needed):
            yield partial

    @contextmanager
    def _moved(self, partial: Path, needed: int | None) -> Iterator[None]:
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            yield
        except (OSError, SafetensorError) as error:  # a full disk raises either
            shutil.rmtree(partial, ignore_errors=True)
            raise not_written(self.named, error, needed) from error
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        files = sorted(file for file in partial.rglob("*") if file.is_file())
        try:
            self.register(file.relative_to(partial) for file in files)
            for file in files:
                place = self.path / file.relative_to(partial)
                place.parent.mkdir(parents=True, exist_ok=True)
                file.replace(place)
        except (BadInput, OSError) as error:
            raise BadInput(f"{first_line(error)}. Until then the new files are in {partial}") from error
        shutil.rmtree(partial, ignore_errors=True)

    def _write(self, files: set[str], begins: bool = False) -> None:
        """begins: this process is the run. Otherwise the process that is named in the manifest stays, if there is
        one."""
        content = {"process": os.getpid(), "host": socket.gethostname()}
        if not begins:
            with suppress(OSError, ValueError, KeyError, TypeError):
                before = bounded_json.read(self.manifest)
                content = {name: before[name] for name in content}
        try:
            durable.replace(self.manifest, json.dumps(content | {"files": sorted(files)}, indent=1))
        except OSError as error:
            raise not_written(self.manifest, error) from error

    def _name(self, path: Path) -> str:
        """`path` relative to the directory, also if it goes through a link to the directory."""
        if not path.is_relative_to(self.path):
            path = self.path / path.absolute().relative_to(self.named.absolute())
        return path.relative_to(self.path).as_posix()


def listed(names: list[str]) -> str:
    """The first five names and the number of the others."""
    return ", ".join(names[:5]) + f" and {len(names) - 5} more" * (len(names) > 5)
