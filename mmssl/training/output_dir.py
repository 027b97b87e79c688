"""The directory of a run, and what in it is the run's own: nothing else there is ever deleted, overwritten or uploaded.

    .mmssl/manifest.json   the files that the run wrote, and the process that wrote them last
    .mmssl/lock            held by the one run that writes
    .mmssl/partial/        files on their way to their places

A file is registered before it is written: after a crash the manifest may name a file that is not there, but it never
lacks one that is.
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
FOLDERS = (CHECKPOINTS, "figures", "logs", "pretraining", OURS)
# what a run writes, as patterns; a method's own files beside these are looked at when they take their places
WRITTEN = (
    "README.md", METRICS, "log.jsonl", "config.json", "generation_config.json", "model*.safetensors",
    "model.safetensors.index.json", "*processor_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "modules.json",
    "sentence_bert_config.json", "config_sentence_transformers.json", "1_Pooling/config.json", "vectors.bin",
    "vectors.txt", "counts.txt", "pretraining/*", "figures/loss.png", f"{CHECKPOINTS}/step_*",
)  # fmt: skip
AT_HOME = (CHECKPOINTS, "logs", OURS)  # folders that are never uploaded
OF_A_CHECKPOINT = ("method.safetensors", "optimizer_*.safetensors", "buffers_*.safetensors", "state.json", "SHA256SUMS")


class OutputDir:
    """A directory, there or not. Where it is a link, all of this is about what the link points to."""

    def __init__(self, directory: str | Path) -> None:
        self.named = Path(directory)  # as the user knows it
        try:
            self.path = self.named.resolve()
        except (OSError, RuntimeError):  # links in a circle; `check` says so
            self.path = self.named.absolute()
        self.manifest = self.path / OURS / "manifest.json"

    @classmethod
    def around(cls, file: Path) -> OutputDir | None:
        """The directory of the run that `file` lies in, if it lies in one."""
        parents = file.absolute().parents
        return next((cls(path) for path in parents if (path / OURS / "manifest.json").is_file()), None)

    # ------------------------------------------------------------ before the run

    def check(self, args) -> None:
        """Refuse a directory that cannot be written, that another process writes to, or where something would be lost
        that `args` (a TrainArgs) does not ask to overwrite. Changes nothing; call it before anything costly."""
        try:
            for path in (self.named, *self.named.absolute().parents):
                if path.is_symlink() and not path.exists():
                    raise BadInput(f"--output_dir {self.named}: {path} is a link that leads nowhere; mend or remove it")
            there = next(path for path in (self.path, *self.path.parents) if path.exists())
            tempfile.TemporaryFile(dir=there).close()  # the directory is made later: a refused run leaves nothing
        except OSError as error:
            raise BadInput(f"--output_dir {self.named} cannot be written to ({error}); choose another") from error
        lock = self._lock()
        if os.path.lexists(lock.lock_file) and not lock.is_locked:
            self._acquire(lock)
            lock.release()
        resume, checkpoints = args.resume_from_checkpoint, self.path / CHECKPOINTS
        any_there = any(path.is_dir() for path in checkpoints.glob("step_*"))
        self._refuse_loss(args, any_there if resume == "auto" else bool(resume) and self._holds(Path(resume)))

    def _refuse_loss(self, args, continues: bool) -> None:
        """continues: the run that lies here is the one that is resumed."""
        own, anew = self.files(), args.overwrite_output_dir and not continues
        unlisted = not self.manifest.exists() and (
            (self.path / METRICS).exists() or any((self.path / CHECKPOINTS).glob("step_*"))
        )
        finished = (self.path / METRICS).exists()
        holds_run = unlisted or any(os.path.lexists(self.path / name) for name in own)
        if unlisted and continues:
            own = self._of_earlier_version()
        elif unlisted and anew:
            raise BadInput(
                f"--output_dir {self.named} holds a run that kept no list of its files, of an earlier version of mmssl "
                "or copied without .mmssl/: what is yours there cannot be told from it. Delete it yourself, or choose "
                "another directory"
            )
        # "auto" where there is no checkpoint yet begins an unfinished run again
        elif holds_run and not (continues or anew or (args.resume_from_checkpoint == "auto" and not finished)):
            if finished:
                without = "" if (self.path / CHECKPOINTS).is_dir() else ", without checkpoints to resume from"
                raise BadInput(
                    f"--output_dir {self.named} already holds a finished run{without}. Choose another directory, or "
                    "delete that run with --overwrite_output_dir."
                )
            raise BadInput(
                f"--output_dir {self.named} holds the checkpoints of an unfinished run, or its log. Continue it with "
                "--resume_from_checkpoint auto, choose another directory, or delete it with --overwrite_output_dir."
            )
        if foreign := self._in_the_way(own):
            raise BadInput(
                f"--output_dir {self.named}: {listed(foreign)} would be overwritten, and no run of this directory "
                "wrote it. Move it away, or choose another directory"
            )
        if anew:
            self._refuse_inputs(args, own)

    def _in_the_way(self, own: set[str]) -> list[str]:
        found = [path for pattern in WRITTEN for path in self.path.glob(pattern)]
        foreign = {self._name(path) for path in found if not self._owned(path, own)}
        folders = (self.path / name for name in FOLDERS)
        return sorted(foreign | {path.name for path in folders if path.exists() and not path.is_dir()})

    def _owned(self, path: Path, own: set[str]) -> bool:
        """A folder is the run's where the run wrote a file in it, and empty ones are nobody's."""
        name = self._name(path)
        if path.is_dir() and not path.is_symlink():
            is_folder = name.startswith((f"{CHECKPOINTS}/", "pretraining/"))
            return is_folder and (not any(path.iterdir()) or any(file.startswith(f"{name}/") for file in own))
        return name in own

    def _refuse_inputs(self, args, own: set[str]) -> None:
        """What a flag names (data, a model to begin with) must not be among what the flag of overwriting deletes."""
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
        """What is plainly the work of a run that kept no manifest: its log and its checkpoints."""
        patterns = [f"{kind}_*/{name}" for kind in ("step", "partial") for name in OF_A_CHECKPOINT]
        found = [file for pattern in patterns for file in (self.path / CHECKPOINTS).glob(pattern)]
        return {self._name(file) for file in (*found, *self.path.glob("log.jsonl"))}

    # ------------------------------------------------------------ the run

    def begin(self, args, resumed_from: Path | None) -> None:
        """From here on the run writes: hold the directory until the process ends or `release`; delete the files of the
        run that is overwritten. Raises as `check` does: the directory may have changed since."""
        continues = resumed_from is not None and self._holds(resumed_from)
        new = not self.path.exists()
        try:
            (self.path / OURS).mkdir(parents=True, exist_ok=True)
            lock = self._lock()
            if not lock.is_locked:
                self._acquire(lock)
                atexit.register(lock.release, force=True)  # and keeps it from being collected
            if self.manifest.exists():
                self._write(self.files())  # who writes here now
            if not new:
                self._refuse_loss(args, continues)
            if args.overwrite_output_dir and not continues:
                self.remove(self.files())
            adopted = self._of_earlier_version() if continues and not self.manifest.exists() else set()
            self._write(self.files() | adopted)
        except OSError as error:
            raise not_written(self.path, error) from error

    def release(self) -> None:
        """Another process may write."""
        self._lock().release(force=True)

    def _lock(self) -> FileLock:
        """One for each directory and process: who holds it already, holds it."""
        return FileLock(self.path / OURS / "lock", is_singleton=True, thread_local=False)

    def _acquire(self, lock: FileLock) -> None:
        try:
            lock.acquire(timeout=1)  # second: a run that begins at this moment has then said who it is
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
        """What the run has registered and not removed, relative to the directory. Raises BadInput where the manifest is
        damaged."""
        try:
            names = bounded_json.read(self.manifest)["files"]
            # nothing outside, whoever wrote it there
            return {name for name in names if not (name.startswith("/") or ".." in Path(name).parts)}
        except FileNotFoundError:
            return set()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(
                f"{self.manifest}, the list of what the run wrote, cannot be read ({first_line(error)}). Choose "
                "another directory, or delete this one yourself"
            ) from error

    def publishable(self) -> tuple[list[str], list[str]]:
        """(the files of the run that others may have, what else lies there): resumable state, trackers' and hidden
        files stay at home, as does whatever a link leads to."""
        own, files, others = self.files(), [], []
        for folder, folders, names in os.walk(self.path):  # follows no links
            here = Path(folder)
            links = [name for name in folders if (here / name).is_symlink()]
            folders[:] = [name for name in folders if self._name(here / name) not in AT_HOME]
            for name in sorted(names + links):
                path = here / name
                (files if self._name(path) in own and not path.is_symlink() else others).append(self._name(path))
        return sorted(files), sorted(others)

    def register(self, files: Iterable[str | Path]) -> None:
        """Files that are about to be written are the run's. Raises BadInput where one is there that is not."""
        own = self.files()
        paths = [self.path / file for file in files]
        names = {self._name(path) for path in paths if not path.is_relative_to(self.path / OURS)}
        if foreign := sorted(name for name in names - own if os.path.lexists(self.path / name)):
            raise BadInput(
                f"{self.named}: {listed(foreign)} would be overwritten, and the run did not write it. Move it away, "
                "then run the same command again, a training with --resume_from_checkpoint auto"
            )
        if wrong := sorted(name for name in names if (self.path / name).is_dir()):
            raise BadInput(f"{self.named}: {listed(wrong)} is a folder where a file is due; move it away")
        if not names <= own:
            self._write(own | names)

    def adopt(self, files: Iterable[Path]) -> None:
        """Files that the run has written already, under names that were free."""
        self._write(self.files() | {self._name(self.path / file) for file in files})

    def remove(self, files: Iterable[str | Path]) -> None:
        """Delete those of `files`, or in those folders, that are the run's, and the folders that become empty."""
        gone, own = [self._name(self.path / file) for file in files], self.files()
        names = {name for name in own if name in gone or any(str(parent) in gone for parent in Path(name).parents)}
        for name in names:
            with suppress(FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError):
                (self.path / name).unlink()
        parents = {Path(name) for name in gone} | {parent for name in names for parent in Path(name).parents} - {Path()}
        for parent in sorted(parents, key=lambda path: -len(path.parts)):
            with suppress(OSError):  # something else lies in it
                (self.path / parent).rmdir()
        left = {name for name in names if os.path.lexists(self.path / name)}
        if names - left:
            self._write(own - (names - left))

    @contextmanager
    def writing(self, needed: int | None = None) -> Iterator[Path]:
        """An empty folder. Where the block ends well, its files take their places in the directory, and are the run's;
        else they are gone, and what was there before is whole. needed: bytes, about, for whoever must free them.

        Raises BadInput where the disk is full, and where a file of the user's is in the way: then they stay here.
        """
        partial = self.path / OURS / "partial"
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            yield partial
        except (OSError, SafetensorError) as error:  # a full disk is the one or the other
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
            raise BadInput(f"{first_line(error)}. Until then what was written is in {partial}") from error
        shutil.rmtree(partial, ignore_errors=True)

    def _write(self, files: set[str]) -> None:
        content = {"process": os.getpid(), "host": socket.gethostname(), "files": sorted(files)}
        try:
            durable.replace(self.manifest, json.dumps(content, indent=1))
        except OSError as error:
            raise not_written(self.manifest, error) from error

    def _name(self, path: Path) -> str:
        """Relative to the directory, also where `path` goes through the link to it."""
        if not path.is_relative_to(self.path):
            path = self.path / path.absolute().relative_to(self.named.absolute())
        return path.relative_to(self.path).as_posix()


def listed(names: list[str]) -> str:
    """The first of them, and how many more there are."""
    return ", ".join(names[:5]) + f" and {len(names) - 5} more" * (len(names) > 5)
