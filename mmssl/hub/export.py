"""Export of a finished run: a directory for the Hub and `from_pretrained`, tested to load, with a model card.

python -m mmssl.hub.export push runs/clip user/name     upload a finished run; a new repository is private
python -m mmssl.hub.export push runs/clip user/name --space     and its page, which `mmssl.look --space` wrote
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.utils import get_session
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from mmssl import durable, figures
from mmssl.arguments import TrainArgs, check_text, explained
from mmssl.errors import BadInput, not_written
from mmssl.hub import card, reload
from mmssl.hub.card import Record  # recipes say export.Record
from mmssl.method import Method
from mmssl.models import remote_code
from mmssl.plain_text import one_line, say
from mmssl.training.log import Log
from mmssl.training.output_dir import SPACE, OutputDir, listed
from mmssl.training.signals import interruptible
from mmssl.training.summary import Summary

__all__ = ["Exported", "NotLoadable", "Record", "Uploads", "check_reload", "finish", "push", "reload_faults"]

ANSWER_TIMEOUT = 30  # seconds; the Hub needs some for a commit of many files
TOLERANCE = 1e-5  # largest difference of outputs after a reload, relative to the largest output
REMEDIES = {
    401: "sign in with `hf auth login`, or set HF_TOKEN",
    403: "this token has no write access: grant it at https://huggingface.co/settings/tokens",
    409: "another process is writing to that repository",
}


class NotLoadable(RuntimeError):
    """The exported directory does not load, or gives other outputs than the model in memory."""


@dataclass
class Exported:
    """A directory and the objects that were exported to it: the arguments of check_reload."""

    directory: Path
    model: torch.nn.Module
    processor: Any
    example: dict[str, Tensor | list[str]]
    auto_class: str = "AutoModel"


def check_reload(
    directory: Path,
    model: torch.nn.Module,
    processor,
    example: dict[str, Tensor | list[str]],
    auto_class: str = "AutoModel",
) -> None:
    """Load `directory` in a new interpreter that cannot import mmssl; every output must equal that of `model`.

    model, processor: those that were exported; not changed. example: a few raw inputs, under the processor's argument
    names. Code in the directory is run only if this process has run it too (see remote_code.has_run). Raises
    NotLoadable.
    """
    with Reload([Exported(directory, model, processor, example, auto_class)]) as test:
        test.raise_fault()


def reload_faults(exports: Sequence[Exported]) -> list[NotLoadable | None]:
    """check_reload for several directories in one new interpreter, because importing transformers takes seconds. None
    for a directory without a fault. If a directory crashes the interpreter, the next ones get a new one."""
    faults = []
    while len(faults) < len(exports):
        with Reload(exports[len(faults) :]) as test:
            faults += test.faults()
    return faults


class Reload:
    """A new interpreter that loads directories and runs their examples, while this process goes on: `faults` waits for
    it. A context: the interpreter ends with it."""

    def __init__(self, exports: Sequence[Exported]) -> None:
        self.exports = exports
        # now, not while this process goes on: a tokenizer keeps the padding of the last call
        models = [copy.deepcopy(export.model).to("cpu", torch.float32).eval() for export in exports]
        self.expected = [reload.outputs(m, e.processor, e.example) for m, e in zip(models, exports, strict=True)]
        self.folder = tempfile.TemporaryDirectory()
        self.places = [Path(self.folder.name, f"example_{i}") for i in range(len(exports))]
        jobs = []
        for export, own in zip(exports, self.places, strict=True):
            own.mkdir()
            tensors = {name: value.contiguous() for name, value in export.example.items() if torch.is_tensor(value)}
            save_file(tensors, own / reload.TENSORS)
            texts = {name: value for name, value in export.example.items() if name not in tensors}
            (own / reload.EXAMPLE).write_text(json.dumps(texts))
            code = sorted(remote_code.has_run(export.directory, export.model, export.processor))
            classes = [export.auto_class, _auto_class(export.processor)]
            jobs.append([str(export.directory.resolve()), *classes, code, str(own)])
        self.interpreter = subprocess.Popen(
            [sys.executable, "-c", Path(reload.__file__).read_text()],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=_environment(self.folder.name),
            cwd=self.folder.name,
            text=True,
        )
        with suppress(BrokenPipeError):  # it has crashed already
            self.interpreter.stdin.write(json.dumps(jobs))
            self.interpreter.stdin.close()

    def __enter__(self) -> Reload:
        return self

    def __exit__(self, *error) -> None:
        self.interpreter.kill()
        self.interpreter.wait()
        self.folder.cleanup()

    def faults(self) -> list[NotLoadable | None]:
        """None for a directory without a fault; up to and including the first that crashes the interpreter."""
        status, faults = self.interpreter.wait(), []
        for export, wanted, own in zip(self.exports, self.expected, self.places, strict=True):
            if (own / reload.OUTPUTS).exists():
                faults.append(_difference(export.directory, wanted, load_file(own / reload.OUTPUTS)))
                continue
            crashed = not (own / reload.ERROR).exists()  # for example killed for memory
            cause = f"exit code {status}" if crashed else (own / reload.ERROR).read_text()
            faults.append(NotLoadable(f"{export.directory} was written but does not load: {cause}"))
            if crashed:
                break
        return faults

    def raise_fault(self) -> None:
        """Raises the first NotLoadable, if there is one."""
        for fault in self.faults():
            if fault:
                raise fault


def _difference(directory: Path, expected: dict[str, Tensor], reloaded: dict[str, Tensor]) -> NotLoadable | None:
    if not expected:
        return NotLoadable(f"{directory}: the model returns no tensor to compare")
    for name, value in expected.items():
        if name not in reloaded or reloaded[name].shape != value.shape:
            return NotLoadable(f"{directory} loads as another model: {name} is missing or of another shape")
        error = (reloaded[name].float() - value.float()).abs().max().item()
        if not error <= TOLERANCE * max(1.0, value.abs().max().item()):
            return NotLoadable(f"{directory} loads, but {name} differs by {error:.2g} from the trained model's")
    return None


def finish(
    method: Method,
    processor,
    model: torch.nn.Module,
    example: dict[str, Tensor | list[str]],
    describe: Callable[[], Record],
    summary: Summary,
    args: TrainArgs,
    trivial: str,
    auto_class: str = "AutoModel",
) -> None:
    """Write everything that a finished run leaves: first weights and processor; then, once they are tested to load,
    what describes them: figures; card; metrics. Then upload it with --push_to_hub.

    model: the model in memory that `method.save_pretrained` writes. example: see check_reload. describe: called after
    the weights are written, while they are tested: a new interpreter takes seconds. trivial: label of the dashed line
    in the loss curve.
    """
    directory, run = Path(args.output_dir), OutputDir(args.output_dir)
    again = "the training is saved; the same command and --resume_from_checkpoint auto export it again"
    saved = again if args.save_steps else "nothing was saved, because --save_steps is 0"
    with interruptible(f"the export to {directory} was not finished: {saved}"):
        _export(method, processor, model, run)
    whole = "the weights are whole, card and metrics are missing" + f"; {again}" * bool(args.save_steps)
    unfinished = interruptible(f"the description in {directory} was not finished: {whole}")
    with unfinished, Reload([Exported(run.named, model, processor, example, auto_class)]) as test:
        record = describe()
        test.raise_fault()
        _describe(record, summary, args, trivial, run)
    say(f"model, card and figures: {directory}")
    if args.push_to_hub:
        retry = f"python -m mmssl.hub.export push {shlex.quote(args.output_dir)} {args.hub_model_id}"
        with interruptible(f"the upload was not finished; {directory} is complete, retry with: {retry}"):
            say(f"uploaded to {push(directory, args.hub_model_id, args.hub_private_repo)}")
    run.release()


def _export(method: Method, processor, model: torch.nn.Module, run: OutputDir) -> None:
    run.remove([card.METRICS])  # from an earlier export; it exists only when the export is complete
    with run.writing(needed=sum(tensor.nbytes for tensor in model.state_dict().values())) as place:
        method.save_pretrained(place)
        processor.save_pretrained(place)


def _describe(record: Record, summary: Summary, args: TrainArgs, trivial: str, run: OutputDir) -> None:
    def loss_curve() -> dict[str, str]:
        figures.loss_curve(run.path / Log.FILE, place / "figures" / "loss.png", trivial)
        return {"loss.png": f"Training loss; dashed, {trivial}."}

    def card_of_the_run() -> bool:
        card.write_card(place, record, summary, args)
        return True

    with run.writing() as place:
        record.figures = summary.attempt("the loss curve", loss_curve, {}) | record.figures
        if not summary.attempt("the model card", card_of_the_run, False):
            card.write_short_card(place, card.title(args), f"No more is known of this model: {summary.warnings[-1]}.")
    with run.writing() as place:
        card.write_metrics(place, record.results, summary, args)


def push(directory: Path, repository: str, private: bool = True) -> str:
    """Upload the files that a finished run wrote, and return the address. Other files in the directory stay there;
    their names are printed. private: for a new repository.

    The snippets on the card then load the repository. Raises BadInput with the command to retry; nothing on disk has
    changed in that case.
    """
    if missing := [name for name in (card.METRICS, card.CARD) if not (directory / name).exists()]:
        raise BadInput(f"{directory} holds no finished run (no {missing[0]}): finish the training first")
    files, left = OutputDir(directory).publishable()
    if unlisted := [name for name in (card.METRICS, card.CARD) if name not in files]:
        raise BadInput(
            f"{directory / unlisted[0]} is not in the list of the run's files (.mmssl/manifest.json): choose yourself "
            "what to upload, with `hf upload`"
        )
    if left:
        say(f"not uploaded, because the run did not write it: {listed(left)}")
    retry = ["python", "-m", "mmssl.hub.export", "push", str(directory), repository] + ["--public"] * (not private)
    try:
        repository = _create(repository, private)
        readme = directory / card.CARD
        before = readme.read_text(encoding="utf-8")
        named = card.name_the_model(before, repository)
        with tempfile.TemporaryDirectory() as place:
            for name in {*files} - {card.CARD}:
                Path(place, name).parent.mkdir(parents=True, exist_ok=True)
                Path(place, name).symlink_to((directory / name).absolute())
            Path(place, card.CARD).write_text(named, encoding="utf-8")
            address = _upload(Path(place), repository, "Upload the finished run")
    except _Refused as error:
        raise BadInput(f"{error}. Everything is still in {directory}; retry with: {shlex.join(retry)}") from error
    try:
        durable.replace(readme, named)
    except OSError as error:
        raise not_written(readme, error, len(named)) from error
    return address


def push_space(directory: Path, repository: str, private: bool = True) -> str:
    """Upload the page that `python -m mmssl.look --space` wrote, as a Space of the same name that shows the model
    `repository`, and return its address. Raises BadInput if there is none, or as `push` does."""
    run, app = OutputDir(directory), Path(SPACE, "app.py")
    files = sorted(name for name in run.files() if name.startswith(f"{SPACE}/") and (run.path / name).is_file())
    if app.as_posix() not in files:
        raise BadInput(f"{directory} has no page yet: write it with python -m mmssl.look {directory} --space")
    try:
        repository = _create(repository, private, "space")
        named = card.name_the_model((run.path / app).read_text(encoding="utf-8"), repository)
        with tempfile.TemporaryDirectory() as place:
            for name in files:
                copy = Path(place, name)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.symlink_to(run.path / name)
            Path(place, app).unlink()
            Path(place, app).write_text(named, encoding="utf-8")
            return _upload(Path(place, SPACE), repository, "Upload the page of the model", "space")
    except _Refused as error:
        retry = f"python -m mmssl.hub.export push {shlex.quote(str(directory))} {repository} --space"
        raise BadInput(f"{error}. The page is still in {run.path / SPACE}; retry with: {retry}") from error


class Uploads:
    """--push_to_hub during training. At the start: create the repository, so that a refusal costs no training. With
    --hub_strategy every_save, after each checkpoint: upload the current encoder while training continues."""

    def __init__(self, args: TrainArgs, method: Method, processor) -> None:
        """Raises BadInput if the Hub refuses."""
        from accelerate import PartialState

        self.args, self.method, self.processor = args, method, processor
        self.worker, self.running = ThreadPoolExecutor(max_workers=1), Future()
        self.running.set_result(None)
        if args.push_to_hub and PartialState().is_main_process:
            try:
                _create(args.hub_model_id, args.hub_private_repo)
            except _Refused as error:
                raise BadInput(f"{error}. The training has not started") from error

    def __call__(self, step: int, total: int) -> None:
        """Called after a checkpoint, on the main process. A failure is reported, and the next save tries again."""
        if not self.args.push_to_hub or self.args.hub_strategy != "every_save":
            return
        if step == total:
            self.running.result()  # `finish` uploads this one
        elif self.running.done():  # otherwise the last upload is still running, and this save is not uploaded
            place = Path(tempfile.mkdtemp())
            try:
                self.method.save_pretrained(place)
                self.processor.save_pretrained(place)
                sentence = f"Training is still running: these are the weights after step {step:,} of {total:,}."
                card.write_short_card(place, card.title(self.args), sentence)
            except (OSError, SafetensorError) as error:  # a full disk raises either
                shutil.rmtree(place)
                self._say(step, f"no copy for the Hub could be written to {place} ({error})")
            else:
                self.running = self.worker.submit(self._send, place, step)

    def _send(self, place: Path, step: int) -> None:
        try:
            _upload(place, self.args.hub_model_id, f"Step {step}")
        except _Refused as error:
            self._say(step, str(error))
        finally:
            shutil.rmtree(place)

    def _say(self, step: int, fault: str) -> None:
        said = f"warning: step {step}: {fault}; training continues, and the next save tries again"
        tqdm.write(one_line(said), file=sys.stderr)


class _Refused(Exception):
    """The Hub refused, or could not be reached; the message says why and what to do."""


def _create(repository: str, private: bool, kind: str = "model") -> str:
    """Create the repository if it does not exist; returns its full name. kind: "model", or "space" (of Gradio)."""
    options = {"private": private, "exist_ok": True, "repo_type": kind}
    options |= {"space_sdk": "gradio"} if kind == "space" else {}
    return _ask(repository, lambda: HfApi().create_repo(repository, **options).repo_id)


def _upload(directory: Path, repository: str, message: str, kind: str = "model") -> str:
    """Upload in one commit: all files or none. Other files in the repository stay. Returns the address."""
    options = {"repo_id": repository, "repo_type": kind, "commit_message": message}
    return _ask(repository, lambda: str(HfApi().upload_folder(folder_path=directory, **options)))


def _ask(repository: str, call):
    get_session().timeout = ANSWER_TIMEOUT  # huggingface_hub would wait forever
    try:
        return call()
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        cause = f"no answer in {ANSWER_TIMEOUT} seconds" if "Timeout" in type(error).__name__ else cause
        remedy = f": {REMEDIES[status]}" if status in REMEDIES else ""
        raise _Refused(f"upload to {repository} failed ({cause}){remedy}") from error


def _auto_class(processor) -> str:
    """The class that users load the processor with. For a feature extractor alone this is not AutoProcessor, which
    expects a Wav2Vec2 model to have a tokenizer too."""
    from transformers import FeatureExtractionMixin, ImageProcessingMixin, PreTrainedTokenizerBase, ProcessorMixin

    kinds = {ProcessorMixin: "AutoProcessor", PreTrainedTokenizerBase: "AutoTokenizer"}
    kinds |= {ImageProcessingMixin: "AutoImageProcessor", FeatureExtractionMixin: "AutoFeatureExtractor"}
    return next(name for kind, name in kinds.items() if isinstance(processor, kind))


def _environment(place: str) -> dict[str, str]:
    """Environment of a process that does not belong to a launched group, sees no GPU, does not use the Hub, and keeps
    its code cache in `place`."""
    launched = ("ACCELERATE_", "FSDP_", "TORCHELASTIC_", "MASTER_", "RANK", "LOCAL_", "WORLD_SIZE", "GROUP_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(launched)}
    return kept | {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": place}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mmssl.hub.export", description=__doc__)
    command = parser.add_subparsers(required=True).add_parser("push", help="upload a finished run")
    command.add_argument("directory", type=Path)
    command.add_argument("repository", help="user/name")
    command.add_argument("--public", action="store_true", help="make a new repository public")
    command.add_argument("--space", action="store_true", help="also upload its page, as a Space of the same name")
    given = parser.parse_args()
    with explained():
        check_text("directory", str(given.directory))
        directory = given.directory.expanduser()
        say(push(directory, given.repository, private=not given.public))
        if given.space:
            say(push_space(directory, given.repository, private=not given.public))


if __name__ == "__main__":
    main()
