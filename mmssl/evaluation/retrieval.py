"""Image–text retrieval: how often an image's own text is among the k nearest, and the reverse.

As a command, on any saved CLIP-like checkpoint:
    python -m mmssl.evaluation.retrieval --model_name_or_path runs/clip --dataset emoji
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mmssl.arguments import command, flag
from mmssl.data.image_text import pairs
from mmssl.errors import BadInput
from mmssl.evaluation import features
from mmssl.evaluation.finite import finite
from mmssl.hub.table import print_table

KS = (1, 5, 10)


def retrieval(image: Tensor, text: Tensor, owner: Tensor) -> dict[str, float]:
    """Recall at 1, 5 and 10 in per cent, and the median rank (1 is best), both ways.

    image: (images, dim). text: (texts, dim). owner: (texts,), the image of each text. If an image has several texts,
    the best-ranked one counts (Karpathy & Fei-Fei 2015). Ties count half, so that equal features score no better than
    chance. Raises BadInput if a feature is not finite.
    """
    finite(image, "features of images"), finite(text, "features of texts")
    image, text = torch.nn.functional.normalize(image, dim=-1), torch.nn.functional.normalize(text, dim=-1)
    return _both_ways(lambda rows: image[rows] @ text.T, lambda rows: text[rows] @ image.T, owner, len(image))


def of_scores(scores: Tensor, owner: Tensor) -> dict[str, float]:
    """The same, where a model gives each text and image a score: (texts, images). Raises BadInput if one is not
    finite."""
    finite(scores, "scores of texts and images")
    return _both_ways(lambda rows: scores.T[rows], lambda rows: scores[rows], owner, scores.shape[1])


def _both_ways(
    by_image: Callable[[Tensor], Tensor], by_text: Callable[[Tensor], Tensor], owner: Tensor, images: int
) -> dict[str, float]:
    """by_image: images -> their similarity to all texts. by_text: texts -> their similarity to all images."""
    to_image, to_text = [], torch.full((images,), math.inf, device=owner.device)
    for rows in torch.arange(len(owner), device=owner.device).split(1024):
        similarity = by_text(rows)
        own = similarity.gather(1, owner[rows, None])
        to_image.append(_rank(similarity, own))
    for rows in torch.arange(images, device=owner.device).split(1024):
        similarity = by_image(rows)
        mine = owner[None] == rows[:, None]
        own = similarity.masked_fill(~mine, -math.inf).amax(1, keepdim=True)
        # the image's other texts are not competitors
        to_text[rows] = _rank(similarity.masked_fill(mine, -math.inf), own, among_others=True)
    return _recalls("image_to_text", to_text) | _recalls("text_to_image", torch.cat(to_image))


def chance(images: int, owner: Tensor) -> dict[str, float]:
    """The results of random features: expected recalls, and the rank that half of the queries reach."""
    texts = len(owner)
    missed = {0: 1.0}  # k -> P(none of an image's c texts among k drawn from all), C(texts - c, k) / C(texts, k)
    counts, how_many = torch.bincount(owner, minlength=images).unique(return_counts=True)
    none = how_many.double() / images
    while missed[max(missed)] > 0.5 or max(missed) < max(KS):
        k = len(missed)
        none = none * ((texts - counts - k + 1) / max(1, texts - k + 1)).clamp(min=0)
        missed[k] = none.sum().item()
    values = {f"image_to_text_R@{k}": 100 * (1 - missed[k]) for k in KS}
    values["image_to_text_median_rank"] = float(next(k for k in missed if missed[k] <= 0.5))
    values |= {f"text_to_image_R@{k}": 100 * min(k, images) / images for k in KS}
    return values | {"text_to_image_median_rank": float((images + 1) // 2)}


def _rank(similarity: Tensor, own: Tensor, among_others: bool = False) -> Tensor:
    """(rows,) how many columns rank before `own`; ties count half. similarity: (rows, columns). own: (rows, 1); it is
    one of the columns unless `among_others`."""
    ties = (similarity == own).sum(1) - (0 if among_others else 1)
    before = similarity.shape[1] - (similarity <= own).sum(1)  # not (similarity > own): NaN would get rank 1
    return before + ties.clamp(min=0) / 2


def _recalls(way: str, before: Tensor) -> dict[str, float]:
    recalls = {f"{way}_R@{k}": 100 * (before < k).float().mean().item() for k in KS}
    return recalls | {f"{way}_median_rank": before.median().item() + 1}


@dataclass
class RetrievalArgs(features.CheckpointArgs):
    image_column: str | None = flag(None, "column of images; default: the first column with a usual name")
    caption_column: str | None = flag(None, "column of captions; default: the first column with a usual name")
    captions_per_image: int = flag(0, "use only the first n captions of each image; 0: all", at_least=0)


def main(args: RetrievalArgs) -> None:
    rows = args.rows(args.image_column)
    image_column, caption_column = pairs.columns(rows.column_names, args.image_column, args.caption_column)
    captions = [pairs.clean(value)[: args.captions_per_image or None] for value in rows[caption_column]]
    captioned = [i for i, texts in enumerate(captions) if texts]
    if not captioned:
        raise BadInput(f"no row of {args.dataset} has a caption in its column {caption_column}")
    rows, captions = rows.select(captioned), [captions[i] for i in captioned]
    owner = torch.tensor([i for i, texts in enumerate(captions) for _ in texts])
    encoder = features.ImageTextEncoder(args.model_name_or_path, args.use_cpu, args.trust_remote_code)
    image = encoder.images(features.read_images(rows, image_column), args.batch_size)
    text = encoder.texts([t for texts in captions for t in texts], args.batch_size)
    print_table(
        f"{args.model_name_or_path} on {len(image):,} images and {len(text):,} texts of {args.dataset}",
        {"this checkpoint": retrieval(image, text, owner), "chance": chance(len(image), owner)},
    )


if __name__ == "__main__":
    command(main, RetrievalArgs, __doc__)
