"""The model card and metrics.json: a description of the run, made from the run's own records."""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from urllib.parse import quote

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData

import mmssl
from mmssl import bounded_json, durable
from mmssl.arguments import TrainArgs
from mmssl.device import best_device, cores, precision
from mmssl.errors import not_written
from mmssl.hub.table import number, readable, results_table
from mmssl.plain_text import counted, fenced, markdown, one_line, python_string
from mmssl.training.output_dir import METRICS, OutputDir
from mmssl.training.summary import Summary

CARD = "README.md"
UNKNOWN = "unknown"
GIT_TIMEOUT = 30  # seconds; it reads every file of the repository
_NAME = re.compile(r'^name = ".*"', re.MULTILINE)  # the line of a snippet that names the model


@dataclass
class Record:
    """What only the recipe can tell the card."""

    title: str
    description: str  # Markdown: what was trained, by which method; which network is exported
    data: str  # its source, size and held-out part
    task: str  # the Hub's name for it: "zero-shot-image-classification"
    dataset: str
    results: dict[str, dict[str, float]]  # columns: "trained", then its baselines
    units: str  # units of the results: "Per cent; ranks count from 1."
    snippets: dict[str, str]  # heading -> Python that runs as printed; the card fills in its line `name = "..."`
    limits: str
    figures: dict[str, str] = field(default_factory=dict)  # file -> caption
    tags: list[str] = field(default_factory=list)
    base_model: str | None = None  # the directory or Hub id that training started from
    licence: str = ""  # Markdown: of the data


def write_card(directory: Path, record: Record, summary: Summary, args: TrainArgs) -> None:
    """README.md in `directory`, with results as metadata that the Hub displays; its snippets load args.output_dir."""
    shown = (_shown(file, caption) for file, caption in record.figures.items())
    usage = (f"{heading}:\n\n{fenced(code.strip(), 'python')}" for heading, code in record.snippets.items())
    trivial = "" if summary.trivial_loss is None else f" (a model that ignores its input: {summary.trivial_loss:.3f})"
    warnings = "".join(f"- The run warned: {markdown(warning)}\n" for warning in summary.warnings)
    body = f"""# {markdown(record.title)}

{record.description}

## Use

{_join(usage)}

## Results on held-out data

{record.units}

{results_table(record.results)}

{_join(shown)}

## Training

{f"{markdown(record.data)} {record.licence}".strip()}

{fenced(command_line())}

- Length: {summary.step:,} steps, {summary.samples_seen:,} samples, {_duration(summary.seconds)} of training
- Hardware: {markdown(hardware(args))}
- Final loss: {summary.loss:.3f}{trivial}
- Seed: {args.seed}
- Software: {", ".join(f"{name} {release}" for name, release in software().items())}

## Limits

- {record.limits}
- The results are those of one run with one seed.
{warnings}"""
    named = name_the_model(body, args.output_dir)
    ModelCard(f"---\n{_metadata(record).to_yaml()}\n---\n\n{named}").save(directory / CARD)


def title(args: TrainArgs) -> str:
    """The name of the model: that of its directory."""
    return Path(args.output_dir).resolve().name or "model"


def write_short_card(directory: Path, title: str, sentence: str) -> None:
    """The card that is uploaded while training is still running, or if the full card could not be written."""
    data = ModelCardData(
        library_name="transformers", tags=["mmssl", "self-supervised-learning"], model_name=one_line(title)
    )
    text = f"# {markdown(title)}\n\n{markdown(sentence)}"
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n").save(directory / CARD)


def write_metrics(directory: Path, results: dict, summary: Summary, args: TrainArgs) -> None:
    """metrics.json. Its presence marks a finished run, so it is put in place last. A value that could not be computed
    (word similarity when the model knows none of the words) is null."""
    content = {
        "results": results,
        "steps": summary.step,
        "samples_seen": summary.samples_seen,
        "training_seconds": round(summary.seconds, 1),
        "loss": summary.loss,
        "trivial_loss": summary.trivial_loss,
        "warnings": summary.warnings,
        "args": vars(args),
        "command": command_line(),
        "software": software(),
        "hardware": hardware(args),
    }
    (directory / METRICS).write_text(bounded_json.dumps(content, indent=2))


def add_results(
    directory: Path,
    heading: str,
    body: str,
    values: dict[str, float],
    dataset: str,
    drawn: dict[Path, str],
    task: str | None = None,
) -> None:
    """Add a section, its figures and its metadata to the card of a finished run. A section with the same heading is
    replaced.

    body: Markdown. values: name -> result, for the metadata. drawn: file -> caption; the files are copied to the run's
    figures/. task: name of what was judged, for the metadata; default: that of the data.
    """
    run = OutputDir.around(directory / CARD)  # None: there is no manifest to update
    if run:
        run.register([CARD, *(Path("figures", file.name) for file in drawn)])
    shown = []
    for file, caption in drawn.items():
        _replace(directory / "figures" / file.name, file.read_bytes())
        shown.append(_shown(file.name, caption))
    with run.changing() if run else nullcontext():
        model_card = ModelCard.load(directory / CARD)
        sections = re.split(r"(?m)^(?=## )", model_card.text.rstrip() + "\n\n")
        heading = markdown(heading)
        kept = [section for section in sections if not section.startswith(f"## {heading}\n")]
        text = "".join([*kept, f"## {heading}\n\n{_join([body, *shown])}\n"])
        name = one_line(f"{task or short(dataset)}, transfer")
        before = [
            result
            for result in model_card.data.eval_results or []
            if result.dataset_name != name or result.metric_name not in map(one_line, values)
        ]
        model_card.data.eval_results = before + [
            EvalResult(
                task_type=model_card.data.pipeline_tag or "feature-extraction",
                dataset_type=hub_id(dataset) or "custom",
                dataset_name=name,
                dataset_config=name,  # results of equal type and configuration would be listed under one name
                metric_type="accuracy",
                metric_name=one_line(metric),
                metric_value=round(value, 2),
            )
            for metric, value in values.items()
        ]
        model_card.data.model_name = model_card.data.model_name or one_line(directory.resolve().name)
        _replace(directory / CARD, f"---\n{model_card.data.to_yaml()}\n---\n\n{text.lstrip()}")


def _replace(file: Path, content: str | bytes) -> None:
    try:
        durable.replace(file, content)
    except OSError as error:
        raise not_written(file, error, len(content)) from error


def name_the_model(text: str, name: str) -> str:
    """A card whose snippets load `name`."""
    return _NAME.sub(lambda _: f"name = {python_string(name)}", text)


def hub_id(name: str | None) -> str | None:
    """`name` without its configuration if it is a Hub id; None if it is a local file or folder."""
    repository = (name or "").partition(":")[0]
    return repository if re.fullmatch(r"[\w.-]+/[\w.-]+", repository) and not Path(repository).exists() else None


def command_line() -> str:
    """The command that started this run, close enough to repeat it."""
    try:
        return _command_line()
    except Exception:  # the working directory was deleted; sys.argv is not a list of strings
        return UNKNOWN


def _command_line() -> str:
    from accelerate import PartialState

    script = Path(sys.argv[0])
    script = script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script
    state, launcher = PartialState(), ["accelerate", "launch"]
    if state.num_processes > 1:
        launcher += ["--multi_gpu", "--num_processes", str(state.num_processes)]
        if state.device.type == "cpu":  # without these, accelerate starts only one process on a CPU
            launcher = ["ACCELERATE_USE_CPU=true", *launcher, "--num_machines", "1"]
    return shlex.join([*launcher, str(script), *sys.argv[1:]])


def software() -> dict[str, str]:
    packages = {name: _version(name) for name in ("torch", "transformers", "datasets", "accelerate")}
    return {"mmssl": mmssl.__version__} | packages | {"Python": platform.python_version()} | _commit()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # on the path, but not installed
        return UNKNOWN


def hardware(args: TrainArgs) -> str:
    try:
        return _hardware(args)
    except Exception:  # a driver or reading /proc may raise many kinds
        return UNKNOWN


def _hardware(args: TrainArgs) -> str:
    from accelerate import PartialState

    processes, kind = PartialState().num_processes, precision(args).replace("no", "fp32")
    if torch.cuda.is_available() and not args.use_cpu:
        return f"{processes} x {torch.cuda.get_device_name()}, {kind}"
    if (device := best_device(args.use_cpu).type) != "cpu":
        return f"{device} ({platform.machine()}), {kind}"
    return f"{counted(cores(), 'CPU core')} ({platform.machine() or UNKNOWN}), {kind}"


def _metadata(record: Record) -> ModelCardData:
    trained, *baselines = record.results
    dataset, name = hub_id(record.dataset), one_line(f"{short(record.dataset)}, held out")
    measured = [
        EvalResult(
            task_type=record.task,
            dataset_type=dataset or "custom",
            dataset_name=name,
            dataset_config=name,
            metric_type=metric,
            # the baselines stand in the name, because the Hub shows this list without the card
            metric_name=" ".join([readable(metric), *_beside(metric, record.results, baselines)]),
            metric_value=round(value, 4),
        )
        for metric, value in record.results[trained].items()
    ]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=record.task,
        tags=["mmssl", "self-supervised-learning", *record.tags],
        datasets=[dataset] if dataset else None,
        base_model=hub_id(record.base_model),
        model_name=one_line(record.title),
        eval_results=measured or None,
    )


def short(dataset: str) -> str:
    """The last part of a path, of a file with its folder: many files are called train.parquet."""
    path = Path(dataset)
    return f"{path.parent.name}/{path.name}" if path.suffix and path.parent.name else path.name


def _beside(name: str, results: dict[str, dict[str, float]], baselines: list[str]) -> list[str]:
    """["(untrained 3.5, chance 2.5)"], or [] if no baseline has this metric."""
    known = [f"{column} {number(results[column][name])}" for column in baselines if name in results[column]]
    return [f"({', '.join(known)})"] if known else []


def _shown(file: str, caption: str) -> str:
    """Markdown: a picture of the folder of figures."""
    return f"![{markdown(caption)}](figures/{quote(os.fsencode(file))})\n\n*{markdown(caption)}*"


def _join(parts) -> str:
    return "\n\n".join(parts)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.1f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


@cache
def _commit() -> dict[str, str]:
    """{"commit": ...} if mmssl runs from its repository, with "-dirty" if files were changed since that commit."""
    root = Path(__file__).parents[2]
    if not (root / "pyproject.toml").exists() or not shutil.which("git"):
        return {}
    command = ["git", "-C", root, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        git = subprocess.run(command, capture_output=True, text=True, timeout=GIT_TIMEOUT)
    except (OSError, ValueError, subprocess.SubprocessError):
        return {}
    return {"commit": git.stdout.strip()} if git.returncode == 0 else {}
