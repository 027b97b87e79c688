"""Write labelled tasks that are made from labelled images, for recipes/affinity.py: what an encoder may know of them.

python data_scripts/image_tasks.py --dataset cifar10 --output_dir tasks --group animal=bird,cat,deer,dog,frog,horse
python recipes/affinity.py --encoders runs/simclr runs/rotation --tasks cifar10 tasks/turn tasks/colour tasks/animal

turn: by how many quarter turns the image is turned (drawn anew for each). colour, contrast: in which quarter of the
training images its mean red minus blue, and its deviation of brightness, lie. Each --group: whether the image's class
is one of these. The parts of the data stay: test images are test images.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mmssl.arguments import Flags, command, flag
from mmssl.data import columns, sources
from mmssl.data.atomic import whole
from mmssl.data.images.decoding import as_rgb, undecoded
from mmssl.errors import BadInput
from mmssl.plain_text import say


def colour(pixels: np.ndarray) -> float:
    """Mean red minus mean blue. pixels: (height, width, 3) uint8."""
    return float(pixels[..., 0].mean() - pixels[..., 2].mean())


def contrast(pixels: np.ndarray) -> float:
    """The deviation of the brightness. pixels: (height, width, 3) uint8."""
    return float(pixels.mean(2).std())


def square(image: Image.Image) -> Image.Image:
    """Its middle: the shape of an image that is not square would tell a quarter turn."""
    return ImageOps.fit(image, (min(image.size),) * 2)


def quarters(parts: dict[str, list[Image.Image]], measure: Callable) -> dict[str, list[int]]:
    """{part: the quarter of each image}, between the quartiles of the training images. Raises BadInput if they are
    equal."""
    values = {part: np.array([measure(np.asarray(image)) for image in images]) for part, images in parts.items()}
    edges = np.quantile(values["train"], [0.25, 0.5, 0.75])
    if len(set(edges)) < 3:
        raise BadInput(f"{measure.__name__}: most images have the same; the data has no such task")
    return {part: np.searchsorted(edges, each).tolist() for part, each in values.items()}


def png(image: Image.Image) -> dict:
    written = io.BytesIO()
    image.save(written, "PNG")
    return {"bytes": written.getvalue(), "path": None}


def write(directory: Path, parts: dict[str, tuple[list[Image.Image], list]]) -> None:
    """A folder with a Parquet file for each part, all or nothing. parts: images and labels."""
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    with whole(directory) as place:
        for part, (images, labels) in parts.items():
            rows = {"image": [png(image) for image in images], "label": [str(label) for label in labels]}
            datasets.Dataset.from_dict(rows, features=features).to_parquet(place / f"{part}.parquet")
    say(f"{directory}: {', '.join(f'{len(labels):,} {part}' for part, (_, labels) in parts.items())} images")


@dataclass
class TasksArgs(Flags):
    dataset: str = flag("digits", "a built-in name, a file, a folder or a Hub id")
    output_dir: str = flag("data/image_tasks", "gets a folder for each task")
    group: list[str] = flag([], "NAME=class,class: a task of two classes")
    max_samples: int = flag(10_000, "images of each part, at most", at_least=4)


def main(args: TasksArgs) -> None:
    directory, most = Path(args.output_dir).expanduser(), args.max_samples
    data = dict(zip(("train", "test"), sources.split(sources.load(args.dataset), held_out=1000), strict=True))
    column = columns.find(data["train"].column_names, None, columns.IMAGE, "image")
    data = {part: rows.select(range(min(len(rows), most))) for part, rows in data.items()}
    images = {part: [as_rgb(image) for image in undecoded(rows, column)[column]] for part, rows in data.items()}
    rng = np.random.default_rng(0)
    turns = {part: rng.integers(0, 4, len(each)).tolist() for part, each in images.items()}
    turned = {
        part: [square(image).rotate(90 * turn) for image, turn in zip(each, turns[part], strict=True)]
        for part, each in images.items()
    }
    write(directory / "turn", {part: (turned[part], turns[part]) for part in images})
    for measure in (colour, contrast):
        try:
            labels = quarters(images, measure)
        except BadInput as error:
            say(f"skipped: {error}")
            continue
        write(directory / measure.__name__, {part: (images[part], labels[part]) for part in images})
    for name, _, members in (each.partition("=") for each in args.group):
        members = set(members.split(","))
        named = columns.find(data["train"].column_names, None, columns.LABEL, "label")
        feature = data["train"].features[named]
        text = feature.int2str if hasattr(feature, "int2str") else str
        labels = {
            part: [name if text(each) in members else "other" for each in rows[named]] for part, rows in data.items()
        }
        if len(set(labels["train"])) < 2:
            raise BadInput(f"--group {name}: {', '.join(sorted(members))} name all classes of the images, or none")
        write(directory / name, {part: (images[part], labels[part]) for part in images})


if __name__ == "__main__":
    command(main, TasksArgs, __doc__)
