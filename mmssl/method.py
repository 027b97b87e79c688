"""The interface between a method and the training loop.

A method is an `nn.Module` that turns a batch into a loss. It knows nothing of devices, precision, optimizers,
checkpoints or logging; the loop knows nothing of the method beyond what is declared here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mmssl.distributed import rank
from mmssl.errors import BadInput
from mmssl.plain_text import say

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel

HEADS = "pretraining/heads.safetensors"  # in an export: what only training needs
METHOD = "method"  # in the metadata of that file: the class that wrote it


@dataclass
class Output:
    """A method's output for one batch.

    loss:         scalar, fp32: the mean over this batch, with a graph.
    metrics:      detached scalars, under the same names on every process; the loop averages them.
    features:     (batch, dim), detached: the input of the collapse monitor and of probes.
    trivial_loss: the loss of a model that ignores its input (log of the number of candidates, unigram entropy, mean
                  image) on the same batch, a number or a detached scalar. It is plotted with the loss, so that a loss
                  which falls only that far is not mistaken for learning.
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    features: Tensor | None = None
    trivial_loss: float | Tensor | None = None


@dataclass(frozen=True)
class Card:
    """The parts of the model card that depend on the method.

    about:      what was trained, by which method, and which network is exported.
    task:       the Hub's name for what the model does.
    limits:     what the model cannot be relied on for.
    trivial:    label of the dashed line in the loss curve.
    snippets:   heading -> Python that runs as printed. The line `name = "..."` is filled in. With `fill`, the fields of
                `str.format` are filled in too, from the run's example inputs.
    auto_class: the class of transformers that loads the model.
    """

    about: str = "A model trained with mmssl."
    task: str = "feature-extraction"
    limits: str = "The model was trained on this data alone; test it on your own data before you rely on it."
    trivial: str = "a model that ignores its input"
    snippets: Mapping[str, str] = field(default_factory=dict)
    fill: bool = False
    tags: tuple[str, ...] = ()
    auto_class: str = "AutoModel"


class Method(nn.Module):
    """The only base class. Whatever must survive a resume is a parameter, a buffer or a submodule. Parameters are whole
    in `forward`; in the hooks after it they may be split over processes, see training/sharding.py.

    Define `forward(**batch) -> Output`. If the loss compares the samples of a batch, define `embed` and `loss` instead:
    `forward` joins them, and `steps.grad_cache` calls them separately.

        embed(**batch) -> dict[str, Tensor]     one row per sample, each row a function of its own sample alone
        loss(**embeddings) -> Output            over the rows of all processes (see `distributed.gather`)
    """

    progress = 0.0  # fraction of the training done, in [0, 1); the loop sets it before each step
    couples_samples = False  # True where the loss compares samples of a batch, as in-batch negatives do
    unit = "samples"  # what the progress bar counts: "pairs", "images", "words"
    card = Card()

    def forward(self, *, embed_only: bool = False, **batch: Tensor) -> Output | dict[str, Tensor]:
        """The output for a batch; with `embed_only`, its embeddings (a distributed wrapper exposes forward only)."""
        embeddings = self.embed(**batch)
        return embeddings if embed_only else self.loss(**embeddings)

    def start_epoch(self, epoch: int, accelerator: Accelerator, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Called before each epoch, the first before the evaluation at step 0: cluster and label the data again."""

    def after_backward(self) -> None:
        """Called between backward and the optimizer: freeze a head by dropping its gradient."""

    def after_step(self) -> None:
        """Called after the optimizer: move an EMA teacher, clamp a temperature."""

    def exported(self) -> PreTrainedModel:
        """The encoder that users load."""
        return self.model

    def save_pretrained(self, directory: str | Path) -> None:
        """Write the encoder in the form that `from_pretrained` reads and, in a separate file, what only training needs
        (projection heads, predictors, queues, teachers)."""
        self.exported().save_pretrained(directory)
        self.save_heads(directory)

    def save_heads(self, directory: str | Path) -> None:
        from safetensors.torch import save_file

        if heads := self._heads():
            file = Path(directory, HEADS)
            file.parent.mkdir(parents=True, exist_ok=True)
            tensors = {name: value.detach().cpu().contiguous().clone() for name, value in heads.items()}
            save_file(tensors, file, {METHOD: type(self).__name__})

    @torch.no_grad()
    def continue_from(self, name: str) -> None:
        """Load the heads of the run that wrote `name`, a directory or a Hub id. A checkpoint of other software has
        none, and those of another method mean something else; the heads then keep their initial values. Raises BadInput
        if they are damaged, not finite or of another size."""
        found = read_heads(name, type(self).__name__)
        for key, value in self._heads().items():
            if key in found and found[key].shape != value.shape:
                raise BadInput(
                    f"--model_name_or_path {name}: its {key} has the shape {tuple(found[key].shape)}, this run's has "
                    f"{tuple(value.shape)}; give the flags that it was trained with, or delete its {HEADS} to begin "
                    "with new ones"
                )
            if key in found:
                value.copy_(found[key])

    def _heads(self) -> dict[str, Tensor]:
        """Parameters and buffers that do not belong to the exported encoder."""
        encoder = self.exported()
        inside = {id(tensor) for tensor in (*encoder.parameters(), *encoder.buffers())}
        return {name: value for name, value in self.state_dict(keep_vars=True).items() if id(value) not in inside}


def read_heads(name: str, method: str) -> dict[str, Tensor]:
    """What `save_heads` of the class `method` wrote into `name`, a directory or a Hub id; {} if nothing or, with
    a sentence, if another method wrote it. Files of earlier versions do not name their method."""
    from safetensors import SafetensorError, safe_open
    from transformers.utils import cached_file

    if Path(name).is_file():  # word vectors
        return {}
    if not (file := cached_file(name, HEADS, _raise_exceptions_for_missing_entries=False)):
        return {}
    try:
        with safe_open(file, "pt") as opened:
            wrote = (opened.metadata() or {}).get(METHOD, method)
            found = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118  not a dict
    except (OSError, SafetensorError) as error:
        raise BadInput(f"--model_name_or_path {name}: its {HEADS} is cut off or damaged ({error})") from error
    if wrote != method:
        if rank() == 0:
            say(f"the heads in {name} are those of {wrote}: {method} continues from its encoder, with new heads")
        return {}
    if bad := [key for key, value in found.items() if not value.isfinite().all()]:
        raise BadInput(
            f"--model_name_or_path {name}: {bad[0]} in its {HEADS} holds NaN or infinite values; delete that file, and "
            "the run continues with new heads"
        )
    return found
