"""A finished run: what it exported, told from its JSON files alone; and its model, loaded when first asked for."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from mmssl import bounded_json
from mmssl.data import sources
from mmssl.data.built_in import BUILT_IN
from mmssl.device import best_device
from mmssl.errors import BadInput
from mmssl.models import pretrained

Made = TypeVar("Made")
NOT_SHOWN = ["checkpoints/*", "logs/*", "space/*"]  # of a repository on the Hub; the page needs none of it
PROCESSORS = {"image": "image_processor", "audio": "feature_extractor"}  # modality -> part of a combined processor


def kept(owner, name: str, make: Callable[[], Made]) -> Made:
    """owner.<name>, which `make` makes at the first call. owner: has `locks`, a dictionary."""
    with owner.locks.setdefault(name, threading.RLock()):
        if name not in owner.__dict__:
            owner.__dict__[name] = make()
    return owner.__dict__[name]


class made_once(Generic[Made]):
    """A property that the first thread to ask for it makes, while the others wait. Each has its own lock, so that the
    examples are there while the features are still computed."""

    def __init__(self, make: Callable[..., Made]) -> None:
        self.make, self.__doc__ = make, make.__doc__

    def __set_name__(self, kind: type, name: str) -> None:
        self.name = name

    def __get__(self, owner, kind: type | None = None) -> Made:
        return kept(owner, self.name, partial(self.make, owner))


class Run:
    """
    name:       the directory or Hub id, as the user gave it.
    folder:     the directory.
    modalities: "image", "text", "audio": what the exported processor reads.
    dataset:    the data to search in, or None.
    asking:     held by the query that is being answered: fast tokenizers are not safe for several threads.
    """

    def __init__(self, name: str, dataset: str | None = None, held_out: int | None = None, max_samples: int = 0,
                 use_cpu: bool = False) -> None:  # fmt: skip
        """dataset: what --dataset takes; default: the training data of the run, if it is still there. held_out: rows
        that training held out, if the data has no test split; 0: all rows. max_samples: only the first n rows; 0: all.

        Reads no weights. Raises BadInput if `name` holds no exported model.
        """
        self.name, self.folder = name, _folder(name)
        self.label = Path(name).name or Path(name).resolve().name
        self.config = _json(self.folder / "config.json")
        if not self.config:
            raise BadInput(f"{name} holds no exported model (no config.json): give the directory of a finished run")
        self.metrics = _json(self.folder / "metrics.json")
        self.args = self.metrics.get("args") if isinstance(self.metrics.get("args"), dict) else {}
        own = self.args.get("dataset")
        self.dataset = dataset or (own if isinstance(own, str) and _is_there(own) else None)
        if held_out is None:  # the rows that the run held out; all of another data set
            held_out = int(self.args.get("held_out") or 0) if self.dataset == own else 0
        self.held_out, self.max_samples, self.use_cpu = held_out, max_samples, use_cpu
        self.modalities = self._modalities()
        self.locks: dict[str, threading.RLock] = {}
        self.asking = threading.RLock()

    def _modalities(self) -> set[str]:
        processor = _json(self.folder / "preprocessor_config.json") | _json(self.folder / "processor_config.json")
        read = {kind for kind, part in PROCESSORS.items() if part in processor or f"{part}_type" in processor}
        video = "video" in str(self.config.get("model_type")) or "video_processor" in processor
        text = any((self.folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
        return (read | ({"text"} if text else set())) - ({"image"} if video else set())

    # ------------------------------------------------------------ what it is

    @made_once
    def pairs_images_and_texts(self) -> bool:
        """Whether images and texts have features in one space."""
        if not {"image", "text"} <= self.modalities:
            return False
        import transformers
        from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

        kind = getattr(transformers, str(MODEL_MAPPING_NAMES.get(self.config.get("model_type"))), None)
        return hasattr(kind, "get_image_features") and hasattr(kind, "get_text_features")

    def has_head(self, *endings: str) -> bool:
        """Whether the exported class has one of these heads: "ForMaskedLM"."""
        named = self.config.get("architectures") or [""]
        return str(named[0]).endswith(endings)

    @property
    def has_words(self) -> bool:
        return (self.folder / "vectors.bin").is_file()

    @property
    def encodes(self) -> str | None:
        """The modality whose examples have features that can be compared, or None."""
        if self.pairs_images_and_texts:
            return "image"
        if len(self.modalities) != 1 or self.has_words:
            return None
        return next(iter(self.modalities))

    # ------------------------------------------------------------ what is loaded

    @made_once
    def pair(self):
        """The ImageTextEncoder of an image-text run."""
        from mmssl.evaluation.features import ImageTextEncoder

        return ImageTextEncoder(str(self.folder), self.use_cpu)

    @made_once
    def encoder(self):
        """The downstream Encoder of a run of one modality."""
        from mmssl.evaluation.downstream import encoder

        return encoder.load(str(self.folder)).to(best_device(self.use_cpu))

    @made_once
    def masked_lm(self) -> tuple:
        """(model with its masked-language-model head, tokenizer)"""
        return self._with_head("AutoModelForMaskedLM")

    @made_once
    def causal_lm(self) -> tuple:
        """(model with its language-model head, tokenizer)"""
        return self._with_head("AutoModelForCausalLM")

    def _with_head(self, auto_class: str) -> tuple:
        model, tokenizer = pretrained.load(str(self.folder), auto_class=auto_class)
        return model.to(best_device(self.use_cpu)).eval(), tokenizer

    @made_once
    def vectors(self):
        """The word vectors, as gensim's KeyedVectors."""
        from mmssl.models import word_vectors

        return word_vectors.load(self.folder)[0]

    @made_once
    def autoencoder(self) -> tuple:
        """(the masked autoencoder with its decoder, an MAE; its image processor)"""
        from mmssl.data.images.decoding import normalisation
        from mmssl.data.images.views import WHOLE, Views
        from mmssl.methods import mae

        model, processor = mae.from_pretrained(str(self.folder))
        return mae.MAE(model, Views([WHOLE], *normalisation(processor))).eval(), processor

    def is_ours_to_show(self, path: str) -> bool:
        """Whether a file that the data names lies below the folder of --dataset (also behind a link there), or in the
        caches of data that was downloaded or built in. Other files are not shown, whatever a table names."""
        from huggingface_hub.constants import HF_HOME

        given = [Path(part).expanduser() for part in self.dataset.split(",")]
        roots = [place if place.is_dir() else place.parent for place in given if place.exists()]
        place = Path(os.path.abspath(path))  # without "..", but links stay: the user put them there
        return any(place.is_relative_to(os.path.abspath(root)) for root in (*roots, HF_HOME, sources.home()))


def _folder(name: str) -> Path:
    place = Path(name).expanduser()
    if place.is_dir() or place.is_absolute() or name.count("/") != 1 or name.startswith("."):
        if not place.is_dir():
            raise BadInput(f"{name}: no such directory")
        return place
    from huggingface_hub import snapshot_download

    try:
        pretrained.ask_hub(name)
        return Path(snapshot_download(name, ignore_patterns=NOT_SHOWN))
    except Exception as error:  # the Hub client raises many kinds
        raise BadInput(f"{name}: no such directory, and the Hub answered: {pretrained.said_by_hub(error)}") from error


def _json(file: Path) -> dict:
    content = bounded_json.read(file) if file.is_file() else {}
    return content if isinstance(content, dict) else {}


def _is_there(dataset: str) -> bool:
    """Data that needs no download: built in, or a file or folder of this machine. Several of them count, too."""
    return bool(dataset) and all(part in BUILT_IN or Path(part).expanduser().exists() for part in dataset.split(","))
