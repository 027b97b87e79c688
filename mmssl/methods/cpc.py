"""CPC: distinguish the true future from other frames, given a summary of the past.

Contrastive predictive coding, van den Oord et al. 2018, arXiv:1807.03748. An encoder turns each part of the input into
z_t; a recurrent network summarises all z up to t in the context c_t; for each k, W_k c_t must select z_{t+k} among
candidates (InfoNCE, equations 3 and 4). Works with any model that gives `encoded` and `last_hidden_state`: frames of
speech (section 3.1), sentences of a document (section 3.3). Differs: scores are divided by sqrt(dim), and W_k is
initialised with zeros, so that the loss starts at log(candidates); all candidates are scored, none are sampled.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmssl.arguments import TrainArgs, flag
from mmssl.data.text import sentences
from mmssl.distributed import gather, rank
from mmssl.errors import BadInput
from mmssl.hub import sentence_transformers
from mmssl.method import Card, Method, Output, read_heads
from mmssl.models import memory, pretrained, word_vectors

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Wav2Vec2FeatureExtractor

    from mmssl.models.cpc_audio import CpcAudioModel
    from mmssl.models.cpc_text import CpcTextModel


AUDIO_SNIPPETS = {
    "Features of a recording": """
import torch
from transformers import AutoFeatureExtractor, AutoModel

name = "..."
extractor = AutoFeatureExtractor.from_pretrained(name)
model = AutoModel.from_pretrained(name).eval()
recording = torch.randn(2 * extractor.sampling_rate).numpy()  # two seconds of your own, at that rate
with torch.no_grad():
    features = model(**extractor(recording, sampling_rate=extractor.sampling_rate, return_tensors="pt"))
print(features.last_hidden_state.shape, model.config.frame_rate, "frames per second")
print(features.pooler_output.shape, "for the whole recording")
""",
    "A classifier of recordings, to be fine-tuned; then `pipeline` takes its directory": """
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, pipeline

name = "..."
extractor = AutoFeatureExtractor.from_pretrained(name)
model = AutoModelForAudioClassification.from_pretrained(name, num_labels=10)
classify = pipeline("audio-classification", model=model, feature_extractor=extractor)
""",
}
TEXT_SNIPPETS = {
    "Vectors of sentences": """
import torch
from transformers import AutoModel, AutoTokenizer

name = "..."
model = AutoModel.from_pretrained(name).eval()
tokenizer = AutoTokenizer.from_pretrained(name)
with torch.no_grad():
    vectors = model(**tokenizer(["The train was late.", "We waited."], padding=True, return_tensors="pt")).pooler_output
print(vectors.shape)
""",
    "The context after each sentence of a document": """
import torch
from transformers import AutoModel, AutoTokenizer

name = "..."
model = AutoModel.from_pretrained(name).eval()
tokenizer = AutoTokenizer.from_pretrained(name)
sentences = tokenizer(["The train was late.", "We waited."], padding=True, return_tensors="pt")
with torch.no_grad():
    print(model(**{name: value[None] for name, value in sentences.items()}).last_hidden_state.shape)
""",
}

NEGATIVES = ("within", "across", "speaker", "all")
EXCLUDED = -1e4  # score of what is not a candidate: probability 0, and a finite gradient


@dataclass
class CpcArgs(TrainArgs):
    """Flags that both CPC recipes share."""

    model_name_or_path: str | None = flag(None, "continue from this CPC: an earlier run, a directory or a Hub id")
    trust_remote_code: bool = flag(False, "run the code that comes with model_name_or_path")
    learning_rate: float = flag(2e-3, "peak learning rate")
    weight_decay: float = flag(0.01, "weight decay of matrices; biases and norms have none")
    warmup_steps: float = flag(0.05, "linear warm-up steps; below 1, a fraction of the run")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse(("gradient_checkpointing",), "a recurrent network")


def within(prediction: Tensor, encoded: Tensor, frames: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Candidates are all frames of the same sequence: they differ in content, not in the speaker.

    prediction, encoded: (batch, time, dim). frames: (batch,), their number without padding.
    Returns scores (batch, time - k, time), the index of the true candidate (batch, time - k), and whether that frame
    exists (batch, time - k) bool.
    """
    scores = prediction[:, :-k] @ encoded.mT / encoded.shape[-1] ** 0.5
    time = torch.arange(encoded.shape[1], device=encoded.device)
    scores = scores.masked_fill(time >= frames[:, None, None], EXCLUDED)
    true = time[k:].expand(scores.shape[:2])
    return scores, true, true < frames[:, None]


def across(
    prediction: Tensor,
    encoded: Tensor,
    frames: Tensor,
    k: int,
    all_encoded: Tensor,
    all_frames: Tensor,
    first: int,
    alike: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Candidates are the same frame of all sequences, so that the position in a sequence gives no information.

    all_encoded, all_frames: (sequences, time, dim) and (sequences,), from all processes. first: the first row of this
    process. alike: (batch, sequences) bool, True = may be a candidate; includes the sequence itself. Otherwise as
    `within`; scores are (batch, time - k, sequences).
    """
    scores = prediction[:, :-k].transpose(0, 1) @ all_encoded[:, k:].permute(1, 2, 0) / encoded.shape[-1] ** 0.5
    time = torch.arange(k, encoded.shape[1], device=encoded.device)
    candidate = (time[:, None] < all_frames)[:, None]  # (time - k, 1, sequences)
    if alike is not None:
        candidate = candidate & alike
    scores = scores.masked_fill(~candidate, EXCLUDED).transpose(0, 1)
    true = torch.arange(first, first + len(encoded), device=encoded.device)[:, None].expand(scores.shape[:2])
    return scores, true, time < frames[:, None]


def everywhere(
    prediction: Tensor, encoded: Tensor, frames: Tensor, k: int, all_encoded: Tensor, all_frames: Tensor, first: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Candidates are all frames of all sequences, the largest and hardest set. Otherwise as `across`; scores are
    (batch, time - k, sequences * time)."""
    time = torch.arange(encoded.shape[1], device=encoded.device)
    candidate = (time < all_frames[:, None]).flatten()
    scores = prediction[:, :-k] @ all_encoded.flatten(0, 1).T / encoded.shape[-1] ** 0.5
    scores = scores.masked_fill(~candidate, EXCLUDED)
    sequence = torch.arange(first, first + len(encoded), device=encoded.device)[:, None]
    return scores, sequence * len(time) + time[k:], time[k:] < frames[:, None]


class CPC(Method):
    """
    model: gives `encoded` (batch, time, dim) and `last_hidden_state` (batch, time, context), neither of which may
           depend on later input; its `frames(lengths)` gives the number of frames without padding.
    steps: it predicts 1 to `steps` frames ahead.
    negatives: "within": frames of the same sequence; "across": the same frame of the batch's other sequences;
           "speaker": of those by the same speaker only; "all": all frames of the batch.
    """

    def __init__(self, model: PreTrainedModel, steps: int = 12, negatives: str = "within", unit: str = "sequences"):
        super().__init__()
        self.model, self.steps, self.negatives, self.unit = model, steps, negatives, unit
        self.couples_samples = negatives != "within"
        self.dimension = model.config.hidden_size
        self.predict = nn.Linear(model.config.context_size, steps * self.dimension, bias=False)  # W_1 to W_steps
        nn.init.zeros_(self.predict.weight)

    def embed(self, lengths: Tensor, speaker: Tensor | None = None, **inputs: Tensor) -> dict[str, Tensor]:
        """inputs: the model's inputs, padded to the same length in every batch. lengths: (batch,), in the model's input
        units. speaker: (batch,) int."""
        output = self.model(**inputs)
        rows = {"context": output.last_hidden_state, "encoded": output.encoded, "frames": self.model.frames(lengths)}
        return rows if speaker is None else rows | {"speaker": speaker}

    def scores(
        self, context: Tensor, encoded: Tensor, frames: Tensor, speaker: Tensor | None, everyone: dict, first: int
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """For each step k, what `within` or `across` returns. everyone: `encoded`, `frames` and `speaker` of all
        processes; the rows of this process begin at `first`."""
        predictions = self.predict(context).unflatten(-1, (self.steps, self.dimension)).unbind(2)
        with torch.autocast(context.device.type, enabled=False):
            predictions, encoded = [p.float() for p in predictions], encoded.float()
            if self.negatives == "within":
                return [within(p, encoded, frames, k) for k, p in enumerate(predictions, 1)]
            others = everyone["encoded"].float(), everyone["frames"], first
            if self.negatives == "all":
                return [everywhere(p, encoded, frames, k, *others) for k, p in enumerate(predictions, 1)]
            alike = speaker[:, None] == everyone["speaker"] if self.negatives == "speaker" else None
            return [across(p, encoded, frames, k, *others, alike) for k, p in enumerate(predictions, 1)]

    def loss(self, context: Tensor, encoded: Tensor, frames: Tensor, speaker: Tensor | None = None) -> Output:
        """context: (batch, time, context). encoded: (batch, time, dim). frames: (batch,). The loss is the mean over a
        sequence's predictions and then over sequences, so that all sequences on all processes count the same."""
        if encoded.shape[1] <= self.steps:
            raise BadInput(
                f"sequences of {encoded.shape[1]} frames are too short to predict {self.steps} ahead; lower "
                "--prediction_steps"
            )
        everyone = {"encoded": encoded, "frames": frames, "speaker": speaker}
        if self.couples_samples:
            everyone = {name: None if value is None else gather(value) for name, value in everyone.items()}
        losses = trivial = count = 0.0
        right = []
        for scores, true, valid in self.scores(context, encoded, frames, speaker, everyone, rank() * len(encoded)):
            each = F.cross_entropy(scores.flatten(0, 1), true.flatten(), reduction="none").view_as(true)
            losses = losses + (each * valid).sum(1)
            count = count + valid.sum(1)
            with torch.no_grad():
                trivial = trivial + ((scores > EXCLUDED).sum(-1).clamp(min=1).log() * valid).sum(1)
                right.append(((scores.argmax(-1) == true) & valid).sum() / valid.sum().clamp(min=1))
        count = count.clamp(min=1)
        metrics = {"accuracy_first_step": right[0], "accuracy_last_step": right[-1]}
        features = _mean(context.detach().float(), frames)
        return Output((losses / count).mean(), metrics, features, trivial_loss=(trivial / count).mean())

    @torch.no_grad()
    def continue_from(self, name: str) -> None:
        """Load W_1 to W_steps of the run that wrote `name`; steps that it did not have start at zero."""
        weight = read_heads(name, type(self).__name__).get("predict.weight")
        if weight is None:
            return
        if weight.shape[1] != self.predict.in_features or len(weight) % self.dimension:
            raise BadInput(
                f"--model_name_or_path {name}: the shape {tuple(weight.shape)} of predict.weight does not fit its model"
            )
        known = min(len(weight), len(self.predict.weight))
        self.predict.weight[:known] = weight[:known]

    @property
    def card(self) -> Card:
        return self._of_text() if self.model.main_input_name == "input_ids" else self._of_audio()

    def _of_audio(self) -> Card:
        config = self.model.config
        return Card(
            about="CPC: distinguish the true future from other frames, given a summary of the past. A `CpcAudioModel` "
            f"for recordings at {config.sampling_rate:,} Hz: `last_hidden_state` has {config.frame_rate:g} frames per "
            "second, each a summary of the recording up to then; `pooler_output`, their mean, is one vector per "
            "recording.",
            task="audio-classification",
            limits="The model was trained on these recordings alone; test it on your own before you rely on it.",
            trivial="chance: log(candidates)",
            snippets=AUDIO_SNIPPETS,
            tags=("cpc", "audio"),
        )

    def _of_text(self) -> Card:
        return Card(
            about="CPC: distinguish the true next sentences from others, given a summary of the text so far. A "
            "`CpcTextModel`: for sentences, `pooler_output` is their vector; for documents, `last_hidden_state` is the "
            "context after each sentence.",
            task="feature-extraction",
            limits="The model was trained on these texts alone; test it on your own before you rely on it.",
            trivial="chance: log(candidates)",
            snippets=TEXT_SNIPPETS,
            tags=("cpc",),
        )

    def save_pretrained(self, directory: str | Path) -> None:
        """For text, also write the files for SentenceTransformer."""
        super().save_pretrained(directory)
        if self.model.main_input_name == "input_ids":
            sentence_transformers.write_mean_pooling(Path(directory), self.dimension)


def build_audio(args) -> tuple[CpcAudioModel, Wav2Vec2FeatureExtractor]:
    """The model and feature extractor that the flags of recipes/cpc_audio.py describe: new, or from a checkpoint."""
    from transformers import Wav2Vec2FeatureExtractor

    from mmssl.models.cpc_audio import CpcAudioConfig, CpcAudioModel

    if args.model_name_or_path:
        return from_pretrained(args.model_name_or_path, args.trust_remote_code, CpcAudioConfig.model_type)
    config = CpcAudioConfig(
        hidden_size=args.hidden_size, context_size=args.context_size, conv_kernel=args.conv_kernel,
        conv_stride=args.conv_stride, sampling_rate=args.sampling_rate,
    )  # fmt: skip
    # no normalisation over the whole recording: the features of a frame would depend on later samples
    rate = {"sampling_rate": args.sampling_rate, "do_normalize": False, "return_attention_mask": True}
    sizes = f"--hidden_size {args.hidden_size}, --context_size {args.context_size}, --conv_kernel {args.conv_kernel}"
    return memory.build(lambda: CpcAudioModel(config), sizes), Wav2Vec2FeatureExtractor(**rate)


def build_text(args, texts: Iterable[str]) -> tuple[CpcTextModel, PreTrainedTokenizerBase]:
    """The model and tokenizer that the flags of recipes/cpc_text.py describe: new, with the words of `texts`, or from a
    checkpoint."""
    from mmssl.models.cpc_text import CpcTextConfig, CpcTextModel

    if args.model_name_or_path:
        return from_pretrained(args.model_name_or_path, args.trust_remote_code, CpcTextConfig.model_type)
    words = sentences.vocabulary(texts, args.vocab_size, args.min_count)
    if not words:
        raise BadInput(f"no word of {args.dataset} occurs {args.min_count} times; lower --min_count")
    tokenizer = word_vectors.tokenizer(words, plain=True)
    vectors = word_vectors.load(args.init_vectors)[0] if args.init_vectors else None
    config = CpcTextConfig(
        vocab_size=len(tokenizer), embedding_size=vectors.vector_size if vectors is not None else args.embedding_size,
        hidden_size=args.hidden_size, context_size=args.context_size, kernel_size=args.kernel_size,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    sizes = f"--hidden_size {args.hidden_size}, --context_size {args.context_size}, --vocab_size {args.vocab_size}"
    model = memory.build(lambda: CpcTextModel(config), sizes)
    if vectors is not None:
        known = word_vectors.take_over(model.embedding.weight, words, vectors)
        word_vectors.say_taken_over(known, len(words), args.init_vectors)
    return model, tokenizer


def from_pretrained(name: str, trust_remote_code: bool, model_type: str) -> tuple[PreTrainedModel, object]:
    """(model, tokenizer or feature extractor) of an export of mmssl, to continue from. Raises BadInput if `name` is not
    of that type."""
    model, processor = pretrained.load(name, trust_remote_code)
    if model.config.model_type != model_type:
        raise BadInput(f"--model_name_or_path {name} is a {type(model).__name__}, not a {model_type} of mmssl")
    return model, processor


def _mean(states: Tensor, frames: Tensor) -> Tensor:
    """(batch, dim): the mean over frames without padding. states: (batch, time, dim). frames: (batch,)."""
    keep = torch.arange(states.shape[1], device=states.device) < frames[:, None]
    return (states * keep[..., None]).sum(1) / frames.clamp(min=1)[:, None]
