"""Fine-tuning with the shared loop: an encoder and a linear head; lower layers train at a lower rate or are frozen.

LP-FT (Kumar et al. 2022, arXiv:2202.10054): the head is initialised with the linear probe of the encoder's features,
because a random head would distort them. An untrained encoder gets a new head on its unscaled features.
Differs: before a probed head the features stay standardised, as they were for the probe. Early stopping: the weights
are those of the best evaluation on a tenth of the labels, which are not trained on; the first one is of the probe.
"""

from __future__ import annotations

import copy
import math
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW

from mmssl.arguments import TrainArgs
from mmssl.data import draws
from mmssl.data.labelled import Labelled
from mmssl.data.loader import Loader
from mmssl.evaluation.downstream import linear_probe
from mmssl.evaluation.downstream.encoder import Encoder, features
from mmssl.evaluation.finite import finite
from mmssl.method import Method, Output
from mmssl.training.loop import train
from mmssl.training.output_dir import OutputDir

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler


# of encoders of speech, off in fine-tuning: they skip frozen layers, or fail on short sounds
OF_SPEECH = ("layerdrop", "mask_time_prob", "mask_feature_prob")
HELD_OUT = 0.1  # fraction of the labels for early stopping
FEWEST = 500  # examples to hold out, below which none is: on fewer, luck would choose the weights
EVALUATIONS, PATIENCE = 20, 5  # in a run; evaluations without a better one after which it ends


class Classifier(Method):
    """
    width:  dimension of the encoder's features.
    frozen: the number of lowest layers that are not trained; the embeddings count as one.
    probe:  the linear probe that the head is initialised with; None: a new head.
    seed:   seed of the views of training images.
    """

    unit = "examples"

    def __init__(
        self,
        encoder: Encoder,
        width: int,
        classes: int,
        frozen: int = 0,
        probe: Pipeline | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.encoder, self.head, self.seed = encoder, nn.Linear(width, classes), seed
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))
        nn.init.normal_(self.head.weight, std=0.01)  # MAE, appendix A.1: start close to uniform predictions
        nn.init.zeros_(self.head.bias)
        if probe is not None:
            self._initialise_from(*probe)
        for name, parameter in encoder.model.named_parameters():
            if layer_of(name, encoder.model) < frozen:
                parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> Classifier:
        """Frozen layers stay in evaluation mode: their batch norms keep their statistics, and nothing is dropped."""
        super().train(mode)
        for module in self.encoder.model.modules():
            of_it = [*module.parameters()]
            if of_it and not any(parameter.requires_grad for parameter in of_it):
                module.eval()
        return self

    @torch.no_grad()
    def _initialise_from(self, scaler: StandardScaler, regression: LogisticRegression) -> None:
        """Copy the scaler's mean and deviation, (width,), and the regression's coefficients, (classes, width)."""
        self.mean.copy_(torch.from_numpy(scaler.mean_))
        self.deviation.copy_(torch.from_numpy(scaler.scale_))
        weight, bias = torch.from_numpy(regression.coef_), torch.from_numpy(regression.intercept_)
        if len(weight) == 1:  # for two classes scikit-learn stores the difference
            weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
        self.head.weight[regression.classes_] = weight.float()
        self.head.bias[regression.classes_] = bias.float()

    def forward(self, label: Tensor, **inputs: Tensor) -> Output:
        """label: (batch,). inputs: what the encoder takes."""
        if "key" in inputs:  # an image's key is constant here; mixing in the step gives a new view each time
            inputs["key"] = draws.draw(draws.draw(inputs["key"], self.seed, 0) + self.step, 0, 1)
        logits = self.logits(**inputs)
        accuracy = (logits.argmax(1) == label).float().mean()
        loss = F.cross_entropy(logits, label)
        return Output(loss, {"accuracy": accuracy.detach()}, trivial_loss=math.log(logits.shape[1]))

    def logits(self, **inputs: Tensor) -> Tensor:
        """(batch, classes)."""
        return self.head((self.encoder(**inputs) - self.mean) / self.deviation).float()

    def after_step(self) -> None:
        self.step += 1

    def save_pretrained(self, directory: str | Path) -> None:
        """The fine-tuned encoder, without the head."""
        self.encoder.model.save_pretrained(directory)


def finetune(encoder: Encoder, train_data: Labelled, test_data: Labelled, **how) -> Tensor:
    """(test examples,) classes predicted by a copy of `encoder` that is trained on the training data. how: arguments of
    `fit`. Nothing is chosen on the test data."""
    return predict(fit(encoder, train_data, **how), test_data)


def fit(
    encoder: Encoder,
    train_data: Labelled,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    layer_decay: float = 1.0,
    weight_decay: float = 0.05,
    frozen: int = 0,
    linear_probing: bool = False,
    early_stopping: bool = False,
    seed: int = 0,
    use_cpu: bool = False,
) -> Classifier:
    """A classifier with a copy of `encoder`. Its weights are those after the last step or, with early_stopping, the
    best ones on a tenth of the labels, if that is FEWEST of them, and some of each class. linear_probing: initialise
    the head with a linear probe. layer_decay: learning rate of each layer as a fraction of that of the layer above."""
    torch.manual_seed(seed)
    encoder, stopping = copy.deepcopy(encoder), None
    for name in {*OF_SPEECH} & {*encoder.model.config.to_dict()}:
        setattr(encoder.model.config, name, 0.0)
    if early_stopping and HELD_OUT * min(len(train_data) / FEWEST, train_data.label.bincount().min()) >= 1:
        train_data, held_out = _held_out(train_data, seed)
        stopping = EarlyStopping(held_out, steps)
    if linear_probing:
        [inputs] = features(encoder, train_data)
        probe = linear_probe.fit(inputs.numpy(), train_data.label.numpy(), seed)
    else:
        [inputs], probe = features(encoder, train_data.select(torch.arange(2)), cached=False), None
    classifier = Classifier(encoder, inputs.shape[1], len(train_data.names), frozen, probe, seed)
    optimizer = AdamW(groups(classifier, learning_rate, layer_decay, weight_decay), betas=(0.9, 0.999))
    batch_size = min(batch_size, len(train_data))
    with tempfile.TemporaryDirectory() as place:
        args = TrainArgs(
            output_dir=place, max_steps=steps, per_device_train_batch_size=batch_size, learning_rate=learning_rate,
            warmup_steps=0.1, save_steps=0, seed=seed, logging_steps=50, use_cpu=use_cpu,
            eval_steps=max(1, steps // EVALUATIONS),
        )  # fmt: skip
        with suppress(NoBetter):
            train(classifier, Loader(train_data, batch_size, seed=seed), args, [optimizer], evaluate=stopping)
        OutputDir(place).release()
    if stopping is not None:
        classifier.load_state_dict(stopping.best)
    return classifier


class NoBetter(Exception):
    """Ends a training: PATIENCE evaluations in a row were no better."""


class EarlyStopping:
    """An `evaluate` of the loop that keeps the weights of the best evaluation, the first one of equals. data: labelled
    examples that are not trained on. steps: of the whole training. Raises NoBetter before the last of them."""

    def __init__(self, data: Labelled, steps: int) -> None:
        self.data, self.steps = data, steps
        self.best_accuracy, self.best, self.worse = -1.0, {}, 0

    def __call__(self, classifier: Classifier) -> dict[str, float]:
        predicted = predict(classifier, self.data)
        accuracy = (predicted == self.data.label).float().mean().item()
        self.worse += 1
        if accuracy > self.best_accuracy:
            weights = {name: value.detach().clone() for name, value in classifier.state_dict().items()}
            self.best_accuracy, self.best, self.worse = accuracy, weights, 0
        if self.worse >= PATIENCE and classifier.step < self.steps:
            raise NoBetter
        return {"held_out_accuracy": 100 * accuracy}


def _held_out(data: Labelled, seed: int) -> tuple[Labelled, Labelled]:
    """(labels to train on, a tenth of each class)."""
    from sklearn.model_selection import train_test_split

    rows = train_test_split(range(len(data)), test_size=HELD_OUT, stratify=data.label.numpy(), random_state=seed)
    kept, held = (data.select(torch.tensor(each).sort()[0]) for each in rows)
    return kept, held


@torch.no_grad()
def predict(classifier: Classifier, data: Labelled, batch_size: int = 64) -> Tensor:
    """(examples,) classes."""
    classifier.eval()
    device, batches, found = classifier.head.weight.device, data.batches(batch_size), []
    for rows in batches:
        inputs = {name: value.to(device) for name, value in data.inputs.__getitems__(rows.tolist()).items()}
        found.append(finite(classifier.logits(**inputs), "logits of the fine-tuned classifier").argmax(1).cpu())
    return torch.cat(found)[torch.cat(batches).argsort()]


def groups(classifier: Classifier, learning_rate: float, layer_decay: float, weight_decay: float) -> list[dict]:
    """One parameter group per layer and kind: the head at learning_rate, each layer below at layer_decay times the rate
    of the one above (Clark et al. 2020, arXiv:2003.10555; appendix A.1 of MAE). Biases and norms have no weight
    decay."""
    model, found = classifier.encoder.model, {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found.setdefault((layer_of(name, model), parameter.ndim >= 2), []).append(parameter)
    for parameter in classifier.head.parameters():
        found.setdefault((depth(model) + 2, parameter.ndim >= 2), []).append(parameter)
    top = depth(model) + 2
    return [
        {
            "params": parameters,
            "lr": learning_rate * layer_decay ** (top - layer),
            "weight_decay": weight_decay if matrix else 0.0,
        }
        for (layer, matrix), parameters in found.items()
    ]


def layer_of(name: str, model: nn.Module) -> int:
    """The layer of a parameter or buffer: 0 for the embeddings, 1 to n for the layers, n + 1 for what follows them."""
    prefix, layers = _stack(model)
    if prefix and name.startswith(f"{prefix}."):
        return 1 + int(name[len(prefix) + 1 :].partition(".")[0])
    last_norm = getattr(getattr(model, "config", None), "do_stable_layer_norm", False)  # named first in wav2vec 2.0
    if last_norm and name.startswith("encoder.layer_norm."):
        return layers + 1
    names = [*model.state_dict()]
    within = [i for i, other in enumerate(names) if prefix and other.startswith(f"{prefix}.")]
    return layers + 1 if within and names.index(name) > within[-1] else 0


def depth(model: nn.Module) -> int:
    """The number of layers."""
    return _stack(model)[1]


def _stack(model: nn.Module) -> tuple[str, int]:
    """(name, length) of the list of modules with most of the weights: the layers of a transformer, the stages of a
    network whose layers are in stages; ("", 0) if there is no list."""
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    outermost = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    weights = {name: sum(parameter.numel() for parameter in lists[name].parameters()) for name in outermost}
    largest = max(weights, key=weights.get, default="")
    return largest, len(lists[largest]) if largest else 0
