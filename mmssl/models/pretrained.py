"""Loading of checkpoints from a directory or the Hub. An incomplete or damaged one is refused with a clear message.

Weights are read from safetensors only, never from a pickle. Code in a checkpoint runs only if the caller allows it.
"""

from __future__ import annotations

import json
import math
import sys
from fnmatch import fnmatch
from pathlib import Path

import torch
import transformers  # its classes are imported on first use
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.constants import HF_HUB_OFFLINE
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import tqdm

from mmssl import bounded_json, progress
from mmssl.distributed import rank
from mmssl.errors import BadInput, first_line
from mmssl.models import remote_code
from mmssl.plain_text import say

PRETRAINING = "pretraining"  # folder of an export: a model with its decoder, to continue from
# files of a checkpoint, and of the whole model that an export may have in pretraining/
JSON_FILES = [
    folder + name
    for folder in ("", f"{PRETRAINING}/")
    for name in (
        "config.json", "generation_config.json", "model.safetensors.index.json", "adapter_config.json",
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
        "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json", "chat_template.json",
    )
]  # fmt: skip
HUB_TIMEOUT = 10  # seconds
PICKLES = ("pytorch_model*.bin", "model*.bin", "*.pt", "*.pth", "*.ckpt")


def load(
    name: str,
    trust_remote_code: bool = False,
    may_lack: str = "",
    remove_missing: bool = False,
    auto_class: str = "AutoModel",
    flag: str = "--model_name_or_path",
) -> tuple[transformers.PreTrainedModel, object]:
    """(model, processor) of `name`, a directory or a Hub id; fp32. may_lack: a module that may be missing ("pooler");
    remove_missing: then take it out of the model instead of leaving it random. auto_class: the transformers class that
    loads it. flag: the flag that named it, for messages.

    Raises BadInput if a file is missing or damaged, if the weights do not match config.json or are not finite, or if
    the tokenizer has no vocabulary: transformers would fill such gaps with random weights and empty vocabularies.
    """
    flag = f"{flag} {name}"
    folder = read_configs(name, flag, trust_remote_code)
    own = remote_code.is_ours(_model_type(folder))  # our class is used then, not the directory's copy of its code
    trust_remote_code &= not own
    trust = {"trust_remote_code": trust_remote_code}
    try:
        with progress.silent("transformers"):  # of weights that a class does not use, such as heads
            model, report = getattr(transformers, auto_class).from_pretrained(
                name,
                dtype=torch.float32,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # refused below, by name
                output_loading_info=True,
                **trust,
            )
        processor = _processor(name, trust)
    except Exception as error:  # a damaged file raises many kinds
        cause = str(error).splitlines()[0] if str(error) else ""
        if "trust_remote_code" in str(error):
            cause = (
                "its tokenizer or processor needs code from the checkpoint, which an export of mmssl never does"
                if own
                else "it comes with its own code; read that code, then add --trust_remote_code to run it"
            )
        if "safetensors" in type(error).__module__:
            cause = f"model.safetensors is cut off or damaged ({cause}); copy or download it again"
        if pickle := _pickle(name):
            cause = (
                f"no model.safetensors; {pickle} is not read: it is a pickle, which can run code. Convert it, in a "
                f"separate process that reads only tensors, with: {convert_command(name)}"
            )
        if isinstance(error, json.JSONDecodeError):
            cause = f"one of its JSON files is cut off or damaged ({cause}); copy or download it again"
        raise BadInput(f"{flag}: {cause or type(error).__name__}") from error
    missing = {key for key in report["missing_keys"] if may_lack not in key.split(".")}
    wrong = sorted({*missing, *(key for key, *_ in report["mismatched_keys"])})
    if wrong:
        raise BadInput(
            f"{flag}: its weights do not match the {type(model).__name__} that its config.json describes: "
            f"{len(wrong)} are missing or have another shape, {wrong[0]} first"
        )
    if remove_missing and any(may_lack in key.split(".") for key in report["missing_keys"]):
        setattr(model, may_lack, None)
    check_finite(model, flag)
    tokenizer = getattr(processor, "tokenizer", processor)
    if isinstance(tokenizer, transformers.PreTrainedTokenizerBase) and len(tokenizer) <= len(
        set(tokenizer.all_special_ids)
    ):
        raise BadInput(f"{flag}: its tokenizer has no vocabulary; is tokenizer.json missing?")
    if not trust_remote_code:
        remote_code.drop(model, processor)
    return model, processor


def load_language_model(
    name: str, max_length: int, trust_remote_code: bool, auto_class: str
) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase]:
    """A model of texts and its tokenizer, whose model_max_length is set, because many leave it unset. max_length: of
    the sequences to be trained on. Raises what `load` does, and BadInput if the two do not fit each other or the
    length."""
    flag = f"--model_name_or_path {name}"
    model, tokenizer = load(name, trust_remote_code, auto_class=auto_class)
    check_tokenizer(tokenizer, flag)
    if len(tokenizer) > model.config.vocab_size:
        raise BadInput(
            f"{flag}: a tokenizer of {len(tokenizer)} tokens for a model of {model.config.vocab_size}; they are not "
            "from the same checkpoint"
        )
    tokenizer.model_max_length = longest(model, tokenizer)
    if max_length > tokenizer.model_max_length:
        raise BadInput(f"--max_seq_length {max_length}: {name} takes {tokenizer.model_max_length} tokens at most")
    return model, tokenizer


def check_tokenizer(tokenizer, flag: str) -> None:
    """Raises BadInput, starting with `flag`, if it is not one of the tokenizers library."""
    if not isinstance(tokenizer, transformers.PreTrainedTokenizerBase) or not tokenizer.is_fast:
        raise BadInput(f"{flag}: a {type(tokenizer).__name__}, not a tokenizer of the tokenizers library")


def load_with_decoder(name: str, model_class: str, what: str) -> tuple[transformers.PreTrainedModel, object]:
    """(model, image processor) of an export of mmssl that has the model with its decoder in pretraining/, or of any
    checkpoint of the class of transformers. what: such a model in words, for messages. Raises BadInput if `name` is
    neither."""
    flag = f"--model_name_or_path {name}"
    folder = read_configs(name, flag)
    part = {"subfolder": PRETRAINING} if (folder / PRETRAINING / "config.json").is_file() else {}
    try:
        with progress.silent("transformers"):
            model, report = getattr(transformers, model_class).from_pretrained(
                name, **part, dtype=torch.float32, use_safetensors=True, output_loading_info=True
            )
        processor = transformers.AutoImageProcessor.from_pretrained(name, backend="pil", trust_remote_code=False)
    except Exception as error:  # a missing or damaged file raises many kinds
        raise BadInput(f"{flag} is not {what} with its decoder: {first_line(error)}") from error
    if missing := sorted(report["missing_keys"]):
        raise BadInput(f"{flag} lacks {len(missing)} weights of {what}, {missing[0]} first")
    check_finite(model, flag)
    remote_code.drop(model, processor)
    return model, processor


def check_finite(model: transformers.PreTrainedModel, flag: str) -> None:
    """Raises BadInput, starting with `flag`, if a weight is NaN or infinite."""
    for name, value in model.state_dict().items():  # also running statistics of batch norms
        if not value.isfinite().all():
            raise BadInput(f"{flag}: its {name} holds NaN or infinite values; its training diverged")


def read_configs(name: str, flag: str, trust_remote_code: bool = False) -> Path:
    """The folder with the JSON files of `name`, a directory or a Hub id, checked before any library parses them. Warns
    on stderr about code that they name and that is not run.

    Raises BadInput, starting with `flag`, if a file is damaged or nested too deeply, or if there is no checkpoint.
    """
    folder = Path(name)
    if not folder.is_dir():
        try:
            ask_hub(name)
            folder = Path(snapshot_download(name, allow_patterns=JSON_FILES, tqdm_class=_Quiet))
        except Exception as error:  # the Hub client raises many kinds
            raise BadInput(f"{flag}: no such directory, and the Hub answered: {said_by_hub(error)}") from error
    try:
        for file in (folder / file for file in JSON_FILES):
            if file.is_file():
                bounded_json.check(file)
        foreign = remote_code.named(folder) + remote_code.named(folder / "pretraining")
    except bounded_json.NotJson as error:
        raise BadInput(f"{flag}: {error}") from error
    if foreign and not trust_remote_code and rank() == 0:
        say(
            f"warning: {flag} names its own code ({'; '.join(foreign)}). The code is not run, and not copied to this "
            "run's export",
            sys.stderr,
        )
    return folder


def model_type(name: str) -> str | None:
    """Of a checkpoint, as its config says. Raises what `read_configs` does."""
    folder = read_configs(name, f"--model_name_or_path {name}", trust_remote_code=True)  # `load` warns of code
    config = folder / "config.json"
    return bounded_json.read(config).get("model_type") if config.is_file() else None


def ask_hub(name: str) -> list[str]:
    """The files of a repository; [] with HF_HUB_OFFLINE. Call it before a download: if the Hub does not answer, this
    raises after HUB_TIMEOUT seconds, while a download retries silently for minutes."""
    return [] if HF_HUB_OFFLINE else [s.rfilename for s in HfApi().model_info(name, timeout=HUB_TIMEOUT).siblings or []]


def said_by_hub(error: Exception) -> str:
    """The Hub's error in one sentence, with advice if it did not answer."""
    answered = HF_HUB_OFFLINE or isinstance(error, (HfHubHTTPError, HFValidationError))
    advice = "" if answered else f" (no answer in {HUB_TIMEOUT} s). If it was downloaded before, set HF_HUB_OFFLINE=1"
    return f"{type(error).__name__}: {first_line(error)}{advice}"


class _Quiet(tqdm):
    """No progress bar for a handful of small files."""

    def __init__(self, *arguments, **options) -> None:
        super().__init__(*arguments, **options | {"disable": True})


def convert_command(name: str) -> str:
    output = "" if Path(name).is_dir() else " --output DIRECTORY"
    return f"python -m mmssl.hub.convert {name}{output}"


def _model_type(folder: Path):
    file = folder / "config.json"
    content = bounded_json.read(file) if file.is_file() else {}
    return content.get("model_type") if isinstance(content, dict) else None


def _pickle(name: str) -> str | None:
    """The pickle with the weights of `name`, or None if there is a safetensors file."""
    try:
        files = [file.name for file in Path(name).iterdir()] if Path(name).is_dir() else ask_hub(name)
    except Exception:  # the original error says more
        return None
    if any(file.endswith(".safetensors") and "/" not in file for file in files):
        return None
    return next((file for file in sorted(files) if any(fnmatch(file, pattern) for pattern in PICKLES)), None)


def _processor(name: str, trust: dict[str, bool]):
    try:
        return transformers.AutoProcessor.from_pretrained(name, **trust)
    except (OSError, ValueError, TypeError):
        try:  # AutoProcessor misses a feature extractor alone: a Wav2Vec2 model's has a tokenizer too
            return transformers.AutoFeatureExtractor.from_pretrained(name, **trust)
        except Exception:  # the original error says more
            pass
        raise


def longest(model: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase) -> int:
    """The largest number of tokens that the model can take, including special tokens."""
    positions = getattr(model.config, "max_position_embeddings", None) or math.inf
    table = getattr(model.base_model, "embeddings", None)
    offset = getattr(getattr(table, "position_embeddings", None), "padding_idx", None)  # RoBERTa counts from there
    return int(min(positions - (offset + 1 if offset is not None else 0), tokenizer.model_max_length))
