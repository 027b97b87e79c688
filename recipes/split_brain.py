"""Split-brain autoencoder: trains on unlabelled coloured images, leaves a ResNetModel of two halves.

accelerate launch recipes/split_brain.py                                 # the pictures of the emoji, built in
accelerate launch recipes/split_brain.py --dataset my_folder --encoder resnet18 --image_size 96

20,000 images of CIFAR-10 (--dataset cifar10 --num_train_epochs 15), seed 0, 6 minutes of one core of an EPYC (Zen 5) in
bf16: held out, colour bins 28.1, most frequent 19.3; lightness 2.8, 1.8. Then recipes/transfer.py --mode knn linear,
per cent of 4,000 test images with 1, 10 and 100 % of the labels: linear 36.7, 46.6, 53.2, k-NN 36.0, 44.4, 50.8. Before
training 25.2, 37.7, 42.8 and 23.8, 32.1, 40.1; raw pixels 27.4, 35.8, 41.0 and 21.1, 26.9, 33.9.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.arguments import TrainArgs, command, flag
from mmssl.data.images import pictures, views
from mmssl.evaluation.neighbours import Neighbours
from mmssl.methods import split_brain
from mmssl.models import image_encoders
from mmssl.pretrain import pretrain, start
from mmssl.training import optim

FIGURE = (
    "Held-out images; the grey image that one half sees, with the colours that it predicts; the colours that the "
    "other half sees, with the lightness that it predicts (annealed means)."
)


@dataclass
class SplitBrainArgs(image_encoders.EncoderArgs, pictures.PictureArgs, TrainArgs):
    output_dir: str = flag("runs/split_brain", "where the encoder, log, figures and checkpoints go")
    dataset: str = flag("emoji", "emoji (built in), a Parquet file, a folder of images, or a Hub id; not grey images")
    encoder: str = image_encoders.encoder_flag("resnet-micro", image_encoders.RESNETS)
    decoder_dim: int = flag(128, "channels of the decoder of each half", at_least=1, at_most=16384)
    smallest_crop: float = flag(0.4, "smallest fraction of an image's area in a crop", above=0, at_most=1)

    num_train_epochs: float = flag(50, "passes over the data")
    learning_rate: float = flag(2e-3, "peak learning rate")
    weight_decay: float = flag(1e-3, "weight decay of matrices; biases and norms have none")
    warmup_steps: float = flag(0.05, "linear warm-up steps; below 1, a fraction of the run")


def main(args: SplitBrainArgs) -> None:
    start(args)
    source = pictures.find(args)
    encoder, processor = image_encoders.build(args, source.side)
    train, held_out = source.decoded(processor, args)
    crops = views.View(scale=(args.smallest_crop, 1.0), jitter=0.0, grey=0.0)
    view = views.made_for(processor, [crops])
    counted = split_brain.count(train, view)
    method = split_brain.SplitBrain(encoder, view, counted, args.decoder_dim)
    optimizer = optim.from_args(method, args)
    chance = {
        f"{name}_accuracy": float(share.max()) for name, share in zip(("colour", "lightness"), counted, strict=True)
    }
    evaluation = Neighbours(held_out, processor, args.per_device_train_batch_size, task=FIGURE, chance=chance)
    data = pictures.described(train, held_out)
    pretrain(args, method, processor, train, [optimizer], evaluation, **data)


if __name__ == "__main__":
    command(main, SplitBrainArgs, __doc__)
