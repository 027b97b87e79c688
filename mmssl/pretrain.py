"""The whole run, once for all recipes: train, evaluate, export, check that the export loads, write the model card."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from mmssl.data.loader import Loader
from mmssl.distributed import alone
from mmssl.plain_text import say, say_markdown
from mmssl.training import steps
from mmssl.training.loop import train
from mmssl.training.start import start as set_up

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer
    from torch.utils.data import Dataset

    from mmssl.arguments import TrainArgs
    from mmssl.evaluation.held_out import Columns, Evaluation
    from mmssl.hub.export import Record
    from mmssl.method import Card, Method, Output
    from mmssl.training.summary import Summary

__all__ = ["pretrain", "start"]  # a recipe begins with start() and ends with pretrain()


def start(args: TrainArgs) -> None:
    """Set up the processes, check the output directory and set the seed. The first line of every recipe."""
    from accelerate import PartialState

    from mmssl.hub import reloading

    set_up(args)
    if PartialState().is_main_process:
        reloading.start_early()


def pretrain(
    args: TrainArgs,
    method: Method,
    processor,
    data: Dataset,
    optimizers: Sequence[Optimizer],
    evaluation: Evaluation,
    *,
    trained_on: str,
    held_out: str,
    example: dict[str, Tensor | list],
    collate: Callable | None = None,
    shuffle: bool = True,
    step: Callable[..., Output] = steps.standard,
) -> Summary:
    """Train. Then, on the main process, export the model, check that the export loads, draw figures, write the model
    card and print the results.

    processor: the tokenizer, image processor or feature extractor that users load with the encoder. data, collate,
    shuffle: see `Loader`. trained_on, held_out: the amount of data in words: "1,437 images"; held_out is "" if there is
    none. example: a few raw inputs, under the processor's argument names; pixels are (images, 3, height, width) uint8.
    If training starts from a checkpoint (args.base_model) that one of our runs wrote, its heads are loaded, too.

    Raises what `train` raises, BadInput if no part of the method can do --gradient_checkpointing, and NotLoadable if
    the reloaded export does not give the outputs of the trained model.
    """
    from accelerate import PartialState

    from mmssl.evaluation.downstream.probe import Probed
    from mmssl.hub import export
    from mmssl.models import gradient_checkpointing

    card = method.card  # if it raises, it does so before the training
    if args.base_model:
        method.continue_from(args.base_model)
    if args.gradient_checkpointing:
        gradient_checkpointing.enable(method)
    between = "; " if ";" in trained_on else ", and "
    described = f"{args.dataset}: {trained_on}" + (f"{between}{held_out} held out" if held_out else "")
    if PartialState().is_main_process:
        say(described)
    evaluation = Probed(evaluation, args, method, processor)
    uploads = export.Uploads(args, method, processor)
    if hasattr(data, "made_for"):  # its items depend on the method
        data.made_for(method)
    loader = Loader.from_args(data, args, collate, shuffle)
    summary = train(method, loader, args, optimizers, step, evaluation, uploads)
    if PartialState().is_main_process:
        record = partial(_record, args, method.eval(), card, evaluation, summary, described, held_out, example)
        with alone():
            export.finish(
                method, processor, method.exported(), example, record, summary, args, card.trivial, card.auto_class
            )
    return summary


def _record(
    args: TrainArgs,
    method: Method,
    card: Card,
    evaluation: Evaluation,
    summary: Summary,
    described: str,
    held_out: str,
    example: dict[str, Tensor | list],
) -> Record:
    """The words and figures of the card. A part that fails is left out, with a warning."""
    from mmssl import figures
    from mmssl.data import built_in
    from mmssl.hub import card as cards
    from mmssl.hub.table import print_table
    from mmssl.models import remote_code
    from mmssl.training.output_dir import OutputDir

    attempt, before = summary.attempt, "before training" if args.base_model else "untrained"
    results = {
        column: {name: value for name, value in values.items() if name != "step"}
        for column, values in (("trained", summary.evaluations[-1]), (before, summary.evaluations[0]))
    }
    for column, values in attempt("the baselines", lambda: _numbers(evaluation.baselines(method)), {}).items():
        results[column] = results.get(column, {}) | values
    with OutputDir(args.output_dir).writing() as place:
        drawn = attempt("a figure", lambda: evaluation.draw(method, place / "figures", results), {})
        if "images" in example:
            attempt(
                "the example picture",
                lambda: figures.picture(example["images"][0], place / "figures" / "example.png"),
                None,
            )
    text = attempt("the text of the evaluation", lambda: evaluation.text(method), "")
    snippets = {
        heading: attempt(f"the snippet {heading!r}", partial(filled, code, example), "") if card.fill else code
        for heading, code in card.snippets.items()
    }
    if remote_code.is_ours(method.exported().config.model_type):
        snippets = {heading: remote_code.trusting(code) for heading, code in snippets.items()}
    judged_on = f"{held_out} held out, {args.dataset}" if held_out else args.dataset
    attempt("the table", lambda: print_table(f"{judged_on}. {evaluation.units}", results), None)
    if text:
        say_markdown(text)
    return cards.Record(
        title=cards.title(args),
        description="\n\n".join(part for part in (card.about, text) if part),
        data=f"{described}.",
        licence=built_in.licence(args.dataset),
        task=card.task,
        dataset=args.dataset,
        results=results,
        units=evaluation.units,
        snippets={heading: code for heading, code in snippets.items() if code},
        limits=card.limits,
        figures=drawn,
        tags=list(card.tags),
        base_model=args.base_model,
    )


def _numbers(columns: Columns) -> Columns:
    return {column: {name: float(value) for name, value in values.items()} for column, values in columns.items()}


def filled(code: str, example: dict[str, Tensor | list]) -> str:
    """A snippet with its fields replaced by the example inputs. Each field must be filled with `repr` (a list, or
    `!r`): then any caption becomes a Python literal on one line."""
    return code.format(**example)
