"""Relative patch position: trains on unlabelled images, leaves an encoder of patches (a model of ours with its file).

accelerate launch recipes/relative_patch.py                                    # scikit-learn's digits, built in
accelerate launch recipes/relative_patch.py --dataset my_folder --encoder resnet18 --image_size 128
accelerate launch recipes/relative_patch.py --dataset my_folder --colour project     # both ways against aberration

An encoder halves the side four times, so patches are small beside an image: small images are enlarged to 64 pixels.

20,000 images of CIFAR-10 (--dataset cifar10 --num_train_epochs 10), seed 0, 8 minutes of one core of an EPYC (Zen 5) in
bf16: held out, accuracy 41.6, chance 12.5. Then recipes/transfer.py --mode knn linear, per cent of 4,000 test images
with 1, 10 and 100 % of the labels: linear 32.6, 46.0, 53.0, k-NN 26.1, 33.3, 39.1. The same encoder of patches before
training 26.0, 39.0, 49.3 and 21.3, 29.3, 36.1; raw pixels, of images enlarged to 64, 27.4, 35.9, 41.7 and 21.6, 28.0,
35.6. Those are means over an image's patches; applied to whole images, the same network reaches 47.5 and 40.3 with all
labels, before training 46.2 and 39.2.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.arguments import TrainArgs, command, flag
from mmssl.data.images import decoding, pictures, views
from mmssl.evaluation.neighbours import Neighbours
from mmssl.methods.relative_patch import AROUND, COLOURS, RelativePatch, fitting
from mmssl.models import image_encoders, on_patches
from mmssl.pretrain import pretrain, start
from mmssl.training import optim

SMALLEST = 64  # px: patches of 15


@dataclass
class RelativePatchArgs(image_encoders.EncoderArgs, pictures.PictureArgs, TrainArgs):
    output_dir: str = flag("runs/relative_patch", "where the encoder, log, figures and checkpoints go")
    image_size: int | None = flag(None, "side in pixels; default: that of the data, from 64 to 224", of_new_model=True)
    crop_size: int | None = flag(None, "side in pixels of the patches; default: the largest that fit", at_least=1)
    gap: float = flag(0.5, "gap between patches, as a fraction of their side", above=0, at_most=10)
    jitter: float = flag(0.07, "largest move of a patch, as a fraction of its side", at_least=0, at_most=10)
    colour: str = flag(
        "drop",
        "colours of a patch, which can tell its place: drop all but one channel, drawn at random (drop); remove the "
        "difference between green and magenta (project); keep all (keep)",
        COLOURS,
    )
    smallest_crop: float = flag(0.5, "smallest fraction of an image's area in a view", above=0, at_most=1)

    num_train_epochs: float = flag(60, "passes over the data; each sees all eight neighbours of a patch of every image")
    learning_rate: float = flag(2e-3, "peak learning rate")
    weight_decay: float = flag(1e-2, "weight decay of matrices; biases and norms have none")
    warmup_steps: float = flag(0.05, "linear warm-up steps; below 1, a fraction of the run")


def main(args: RelativePatchArgs) -> None:
    start(args)
    source = pictures.find(args)
    encoder, processor = image_encoders.build(args, max(SMALLEST, source.side))
    train, held_out = source.decoded(processor, args)
    view = views.View(scale=(args.smallest_crop, 1.0), jitter=0.0, grey=0.0)
    side = args.crop_size or fitting(min(decoding.shape(processor)), args.gap, args.jitter)
    encoder = on_patches.patchwise(encoder, side)
    method = RelativePatch(encoder, views.made_for(processor, [view]), args.gap, args.jitter, args.colour)
    optimizer = optim.from_args(method, args)
    caption = (
        "Two patches of held-out images, as the network sees them. Of the eight places around the first (blue), the "
        "brightness is the probability that it gives to each."
    )
    chance = {"accuracy": 1 / len(AROUND)}
    evaluation = Neighbours(held_out, processor, args.per_device_train_batch_size, task=caption, chance=chance)
    data = pictures.described(train, held_out)
    pretrain(args, method, processor, train, [optimizer], evaluation, **data)


if __name__ == "__main__":
    command(main, RelativePatchArgs, __doc__)
