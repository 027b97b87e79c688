"""Multi-task self-supervision: several methods of this package train one encoder, each with its own data and head.

Doersch & Zisserman 2017, arXiv:1708.07860. Their losses are summed, or the tasks take turns, a step each. A task that
must not see what another one shows is given harmonised input (section 4.2): with colorization among the tasks all of
them see grey images, because it keeps the first kernels of the encoder among those that see grey alone. Differs: any
methods that train and export one encoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmssl.data import joined
from mmssl.errors import BadInput
from mmssl.method import Card, Method, Output
from mmssl.models import image_encoders

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel

ORDERS = ("sum", "turns")
LOSS, TRIVIAL, FEATURES, METRIC = "loss", "trivial", "features", "metric."  # of a task without `embed`, as rows


class MultiTask(Method):
    """
    tasks: name -> method; all of one encoder. A batch has the inputs of each, see data.joined.
    order: "sum": each step trains all tasks. "turns": each step trains one; the others' heads and their moments rest.
    """

    unit = "images"

    def __init__(self, tasks: dict[str, Method], order: str = "sum") -> None:
        super().__init__()
        encoder = next(iter(tasks.values())).exported()
        if other := [name for name, task in tasks.items() if task.exported() is not encoder]:
            raise BadInput(
                f"--tasks {other[0]}: it exports another network than the encoder that all tasks train; leave it out"
            )
        self.tasks, self.order = nn.ModuleDict(tasks), order
        self.couples_samples = any(task.couples_samples for task in tasks.values())
        self.register_buffer("turn", torch.zeros((), dtype=torch.int64))
        self.number = 0  # the same: to read the buffer at each step would wait for the device
        self.register_load_state_dict_post_hook(lambda one, _: setattr(one, "number", int(one.turn)))

    def embed(self, **batch: Tensor) -> dict[str, Tensor]:
        """batch: "<task>.<input>", for each task. A task without `embed` of its own has its output here, as rows of
        equal values: their mean over micro-batches, and the gradient of it, are those of the whole batch."""
        parts, rows = joined.apart(batch), {}
        for name, task in self._at_work():
            given = parts[name]
            if task.couples_samples:
                own = task.embed(**given)
            else:
                own = _as_rows(task(**given), len(next(iter(given.values()))))
            rows |= {f"{name}{joined.BETWEEN}{key}": value for key, value in own.items()}
        return rows

    def loss(self, **rows: Tensor) -> Output:
        """rows: what `embed` returns."""
        parts, outputs = joined.apart(rows), {}
        for name, task in self._at_work():
            outputs[name] = task.loss(**parts[name]) if task.couples_samples else _from_rows(parts[name])
        total = sum(output.loss for output in outputs.values())
        metrics = {f"{name}_loss": output.loss.detach() for name, output in outputs.items()}
        if len(outputs) < len(self.tasks):  # the same names at each step: NaN is left out of means
            metrics = {f"{name}_loss": total.new_full((), torch.nan) for name in self.tasks} | metrics
        elif self.order == "sum" or not self.training:
            metrics |= {f"{task}_{name}": value for task, o in outputs.items() for name, value in o.metrics.items()}
        # several processes expect a gradient for every parameter; `after_backward` takes those of idle heads away
        total = total + sum(0.0 * parameter.float().sum() for parameter in self._idle())
        trivial = [output.trivial_loss for output in outputs.values()]
        return Output(
            total,
            metrics,
            next((output.features for output in outputs.values() if output.features is not None), None),
            None if any(each is None for each in trivial) else sum(trivial),
        )

    def _at_work(self) -> Iterator[tuple[str, Method]]:
        """The tasks of this step."""
        named = list(self.tasks.items())
        yield from named[self.number : self.number + 1] if self.order == "turns" and self.training else named

    def _idle(self) -> list[nn.Parameter]:
        """The parameters that no task of this step has."""
        used = {id(parameter) for _, task in self._at_work() for parameter in task.parameters()}
        return [each for each in self.parameters() if each.requires_grad and id(each) not in used]

    @property
    def progress(self) -> float:
        return self._progress

    @progress.setter
    def progress(self, value: float) -> None:
        self._progress = value
        for task in self.tasks.values():
            task.progress = value

    _progress = 0.0

    def start_epoch(self, epoch: int, accelerator: Accelerator, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        for task in self.tasks.values():
            task.start_epoch(epoch, accelerator, optimizers)

    def after_backward(self) -> None:
        for _, task in self._at_work():
            task.after_backward()
        for parameter in self._idle():
            parameter.grad = None  # not zero, with which Adam would move it

    def after_step(self) -> None:
        for task in self.tasks.values():  # of idle ones too: their encoder has moved
            task.after_step()
        self.number = (self.number + 1) % len(self.tasks)
        self.turn.fill_(self.number)

    @property
    def card(self) -> Card:
        how = "their losses are summed" if self.order == "sum" else "they take turns, a step each"
        return Card(
            about=f"Multi-task self-supervision with {', '.join(self.tasks)}: {how}. The encoder that they train is "
            "exported; their heads, to continue from, are in `pretraining/`.",
            task="image-feature-extraction",
            limits=" ".join(dict.fromkeys(task.card.limits for task in self.tasks.values())),
            trivial="models that ignore their input",
            snippets=image_encoders.SNIPPETS,
            tags=("multi-task", *self.tasks),
        )

    def exported(self) -> PreTrainedModel:
        return next(iter(self.tasks.values())).exported()


def _as_rows(output: Output, n: int) -> dict[str, Tensor]:
    """(n,) for each number of the output of n samples; features as they are."""
    numbers = {LOSS: output.loss} | {f"{METRIC}{name}": value for name, value in output.metrics.items()}
    if output.trivial_loss is not None:
        numbers[TRIVIAL] = output.loss.new_zeros(()) + output.trivial_loss
    rows = {name: value.float().expand(n) for name, value in numbers.items()}
    return rows if output.features is None else rows | {FEATURES: output.features}


def _from_rows(rows: dict[str, Tensor]) -> Output:
    mean = {name: value.mean() for name, value in rows.items() if name != FEATURES}
    metrics = {name.removeprefix(METRIC): value.detach() for name, value in mean.items() if name.startswith(METRIC)}
    trivial = mean[TRIVIAL].detach() if TRIVIAL in mean else None
    features = rows[FEATURES].detach() if FEATURES in rows else None
    return Output(mean[LOSS], metrics, features, trivial)
