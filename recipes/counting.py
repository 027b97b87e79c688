"""Counting: trains on unlabelled images, leaves an image encoder (ResNetModel or ViTModel).

accelerate launch recipes/counting.py                                    # scikit-learn's digits, built in
accelerate launch recipes/counting.py --dataset my_folder --encoder resnet18 --image_size 128
accelerate launch recipes/counting.py --dataset my_folder --counts 1000 --grey 0.67            # as in the paper

The encoder sees tiles of half an image's side, at the scale at which it takes whole images later.

20,000 images of CIFAR-10 (--dataset cifar10 --num_train_epochs 12), seed 0, 4 minutes of one core of an EPYC (Zen 5) in
bf16: held out, an image's own whole is nearer than another's in 99.1 per cent, chance 50.0. Then recipes/transfer.py
--mode knn linear, per cent of 4,000 test images with 1, 10 and 100 % of the labels: linear 27.7, 42.3, 48.2, k-NN 27.7,
36.0, 42.2. Before training 25.2, 37.7, 42.8 and 23.8, 32.1, 40.1; raw pixels 27.4, 35.8, 41.0 and 21.1, 26.9, 33.9.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.arguments import TrainArgs, command, flag
from mmssl.data.images import decoding, pictures, views
from mmssl.evaluation.neighbours import Neighbours
from mmssl.methods.counting import Counting
from mmssl.models import image_encoders
from mmssl.pretrain import pretrain, start
from mmssl.training import optim


@dataclass
class CountingArgs(image_encoders.EncoderArgs, pictures.PictureArgs, TrainArgs):
    output_dir: str = flag("runs/counting", "where the encoder, log, figures and checkpoints go")
    tile_size: int | None = flag(None, "side of tiles in pixels; default: half of the image", at_least=1, at_most=1024)
    counts: int = flag(1000, "dimension of the vector of counts", at_least=1, at_most=10**6)
    margin: float = flag(10.0, "least squared distance of the counts of two images", above=0, at_most=10**6)
    grey: float = flag(0.67, "probability that an image is grey", at_least=0, at_most=1)
    smallest_crop: float = flag(0.75, "smallest fraction of an image's area in a view", above=0, at_most=1)

    num_train_epochs: float = flag(40, "passes over the data")
    learning_rate: float = flag(1e-3, "peak learning rate")
    weight_decay: float = flag(1e-4, "weight decay of matrices; biases and norms have none")
    warmup_steps: float = flag(0.05, "linear warm-up steps; below 1, a fraction of the run")


def main(args: CountingArgs) -> None:
    start(args)
    source = pictures.find(args)
    encoder, processor = image_encoders.build(args, source.side)
    train, held_out = source.decoded(processor, args)
    side = 2 * (args.tile_size or max(1, min(decoding.shape(processor)) // 2))
    view = views.View(size=side, scale=(args.smallest_crop, 1.0), jitter=0.0, grey=args.grey)
    normalised = views.Views([view], *decoding.normalisation(processor))
    method = Counting(encoder, normalised, args.counts, args.margin)
    optimizer = optim.from_args(method, args)
    caption = (
        "Held-out images in the order of their counts, smallest first. Each pixel is the count of one thing: in the "
        "whole image, in its four tiles together (should be equal), and in the next image (should differ)."
    )
    batch, chance = args.per_device_train_batch_size, {"own_nearer": 0.5}
    evaluation = Neighbours(held_out, processor, batch, task=caption, chance=chance)
    data = pictures.described(train, held_out)
    pretrain(args, method, processor, train, [optimizer], evaluation, **data)


if __name__ == "__main__":
    command(main, CountingArgs, __doc__)
