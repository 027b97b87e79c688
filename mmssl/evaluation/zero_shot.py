"""Zero-shot classification: the class whose description is nearest to the image (CLIP, section 3.1).

As a command, on any saved CLIP-like checkpoint:
    python -m mmssl.evaluation.zero_shot --model_name_or_path runs/clip --dataset emoji --label_column category
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl import bounded_json
from mmssl.arguments import command, flag
from mmssl.data import columns
from mmssl.data.built_in import emoji
from mmssl.data.image_text import pairs
from mmssl.data.labels import refuse_missing
from mmssl.errors import BadInput
from mmssl.evaluation import features
from mmssl.evaluation.finite import finite
from mmssl.hub.table import print_table

if TYPE_CHECKING:
    import datasets


TEMPLATES = ("a photo of a {}.", "a picture of a {}.", "{}")


def class_embeddings(
    embed_text: Callable[[list[str]], Tensor], classes: Mapping[str, Sequence[str]], templates: Sequence[str]
) -> Tensor:
    """(classes, dim), of unit length: the mean over all names of a class in all templates (CLIP, section 3.1.4).

    embed_text: texts -> (texts, dim). classes: label -> its names in ordinary words. templates: each with one {}.
    """
    check_templates(templates)
    means = []
    for names in classes.values():
        texts = [template.replace("{}", name) for template in templates for name in names]
        means.append(F.normalize(embed_text(texts).float(), dim=-1).mean(0))
    return F.normalize(torch.stack(means), dim=-1)


def check_templates(templates: Sequence[str]) -> None:
    """Raises BadInput if a template has no {}."""
    for template in templates:
        if "{}" not in template:
            raise BadInput(f"--templates: {template!r} has no {{}} where the class name goes")


def zero_shot(image: Tensor, classes: Tensor, label: Tensor) -> dict[str, float]:
    """Accuracy in per cent, over all images and as the mean over classes.

    image: (images, dim). classes: (classes, dim). label: (images,), rows of `classes`. Raises BadInput if a feature is
    not finite.
    """
    finite(image, "features of images"), finite(classes, "features of class names")
    right = ((F.normalize(image, dim=-1) @ classes.T).argmax(1) == label).float()
    per_class = [right[label == c].mean() for c in label.unique()]
    return {
        "zero_shot_accuracy": 100 * right.mean().item(),
        "zero_shot_mean_class_accuracy": 100 * torch.stack(per_class).mean().item(),
    }


def chance(label: Tensor, classes: int) -> dict[str, float]:
    """The accuracy of random guesses, and of always answering the most frequent class (which needs the labels)."""
    return {
        "zero_shot_accuracy": 100 / classes,
        "zero_shot_mean_class_accuracy": 100 / classes,
        "zero_shot_majority_class": 100 * torch.bincount(label).max().item() / len(label),
    }


def labels(data: datasets.Dataset, column: str) -> tuple[list[str], Tensor]:
    """(class names, (rows,) class of each row). Raises BadInput if a row has none."""
    import datasets

    columns.find(data.column_names, column, (), "label")
    values = list(data[column])
    refuse_missing(values, column, "held-out")
    if isinstance(data.features[column], datasets.ClassLabel):
        return list(data.features[column].names), torch.tensor(values)
    number = {name: i for i, name in enumerate(sorted({str(value) for value in values}))}
    return list(number), torch.tensor([number[str(value)] for value in values])


@dataclass
class ZeroShotArgs(features.CheckpointArgs):
    image_column: str | None = flag(None, "column of images; default: the first column with a usual name")
    label_column: str = flag("label", "class of each image: a string, or a number with a name in the data's features")
    classes: str | None = flag(None, "JSON file: label -> its names in ordinary words; default: the labels")
    templates: list[str] = flag(list(TEMPLATES), "prompts, each with {} for the class name")


def main(args: ZeroShotArgs) -> None:
    check_templates(args.templates)
    rows = args.rows(args.image_column)
    names, label = labels(rows, args.label_column)
    classes = {name: [name.replace("_", " ")] for name in names}
    if args.dataset == "emoji" and args.label_column == "category":
        classes = {name: emoji.CATEGORY_NAMES[name] for name in names}
        args.templates = ["{}"] if args.templates == list(TEMPLATES) else args.templates
    if args.classes:
        classes = _in_words(args.classes, names)
    encoder = features.ImageTextEncoder(args.model_name_or_path, args.use_cpu, args.trust_remote_code)
    image_column = pairs.image_column(rows, args.image_column)
    image = encoder.images(features.read_images(rows, image_column), args.batch_size)
    centres = class_embeddings(lambda texts: encoder.texts(texts, args.batch_size), classes, args.templates)
    print_table(
        f"{args.model_name_or_path} on {len(image):,} images of {args.dataset}, {len(names)} classes",
        {"this checkpoint": zero_shot(image, centres, label), "chance": chance(label, len(names))},
    )


def _in_words(file: str, names: Sequence[str]) -> dict[str, list[str]]:
    try:
        given = bounded_json.read(Path(file))
        return {name: [given[name]] if isinstance(given[name], str) else list(given[name]) for name in names}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"--classes {file}: not a JSON object with names for {', '.join(names)}: {error!r}") from error


if __name__ == "__main__":
    command(main, ZeroShotArgs, __doc__)
