"""Export of a finished run: a directory for the Hub and `from_pretrained`, tested to load, with a model card.

python -m mmssl.hub.export push runs/clip user/name     upload a finished run; a new repository is private
python -m mmssl.hub.export push runs/clip user/name --space     and its page, which `mmssl.look --space` wrote
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.utils import get_session
from safetensors import SafetensorError
from torch import Tensor
from tqdm.auto import tqdm

from mmssl import durable, figures
from mmssl.arguments import TrainArgs, check_text, explained
from mmssl.errors import BadInput, not_written
from mmssl.hub import card
from mmssl.hub.card import Record  # recipes say export.Record
from mmssl.hub.reloading import Exported, Reload
from mmssl.method import Method
from mmssl.models import remote_code
from mmssl.plain_text import one_line, say
from mmssl.training.log import Log
from mmssl.training.output_dir import SPACE, OutputDir, listed
from mmssl.training.signals import interruptible
from mmssl.training.summary import Summary

__all__ = ["Record", "Uploads", "finish", "push"]

ANSWER_TIMEOUT = 30  # seconds; the Hub needs some for a commit of many files
REMEDIES = {
    401: "sign in with `hf auth login`, or set HF_TOKEN",
    403: "this token has no write access: grant it at https://huggingface.co/settings/tokens",
    409: "another process is writing to that repository",
}


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

    model: the model in memory that `method.save_pretrained` writes. example: see Exported. describe: called after
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
        write(method, processor, place)


def write(method: Method, processor, directory: Path) -> None:
    """What `from_pretrained` reads, with the code of an architecture that transformers lacks, and the heads."""
    method.save_pretrained(directory)
    processor.save_pretrained(directory)
    remote_code.add_own(directory)


def _describe(record: Record, summary: Summary, args: TrainArgs, trivial: str, run: OutputDir) -> None:
    def loss_curve() -> dict[str, str]:
        return {"loss.png": figures.loss_curve(run.path / Log.FILE, place / "figures" / "loss.png", trivial)}

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
    retry = _again(directory, repository, private)
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
        raise BadInput(f"{error}. Everything is still in {directory}; retry with: {retry}") from error
    try:
        with OutputDir(directory).changing():  # an evaluation may have added to the card during the upload
            durable.replace(readme, card.name_the_model(readme.read_text(encoding="utf-8"), repository))
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
                if name == app.as_posix():
                    copy.write_text(named, encoding="utf-8")
                else:
                    copy.symlink_to((run.path / name).absolute())
            return _upload(Path(place, SPACE), repository, "Upload the page of the model", "space")
    except _Refused as error:
        retry = _again(directory, repository, private, "--space")
        raise BadInput(f"{error}. The page is still in {run.path / SPACE}; retry with: {retry}") from error


def _again(directory: Path, repository: str, private: bool, *others: str) -> str:
    """The command that pushes once more."""
    public = [] if private else ["--public"]
    return shlex.join(["python", "-m", "mmssl.hub.export", "push", str(directory), repository, *public, *others])


class Uploads:
    """--push_to_hub during training. At the start: create the repository, so that a refusal costs no training. With
    --hub_strategy every_save, after each checkpoint: upload the current encoder while training continues."""

    def __init__(self, args: TrainArgs, method: Method, processor) -> None:
        """Raises BadInput if the Hub refuses."""
        from accelerate import PartialState

        self.args, self.method, self.processor, self.repository = args, method, processor, args.hub_model_id
        card.software()  # now: the repository of mmssl may have another commit when the run ends
        self.worker, self.running = ThreadPoolExecutor(max_workers=1), Future()
        self.running.set_result(None)
        if args.push_to_hub and PartialState().is_main_process:
            try:
                self.repository = _create(args.hub_model_id, args.hub_private_repo)
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
                write(self.method, self.processor, place)
                sentence = f"Training is still running: these are the weights after step {step:,} of {total:,}."
                card.write_short_card(place, card.title(self.args), sentence)
            except (OSError, SafetensorError) as error:  # a full disk raises either
                shutil.rmtree(place)
                self._say(step, f"no copy for the Hub could be written to {place} ({error})")
            else:
                self.running = self.worker.submit(self._send, place, step)

    def _send(self, place: Path, step: int) -> None:
        try:
            _upload(place, self.repository, f"Step {step}")
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
