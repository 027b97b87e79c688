"""Colorization: trains on unlabelled coloured images, leaves an encoder of their grey form (ResNetModel or ViTModel).

accelerate launch recipes/colorization.py                                # the pictures of the emoji, built in
accelerate launch recipes/colorization.py --dataset my_folder --encoder resnet18 --image_size 96
accelerate launch recipes/colorization.py --dataset my_folder --encoder vit-micro --learning_rate 1e-3

20,000 images of CIFAR-10 (--dataset cifar10 --num_train_epochs 15), seed 0, 4 minutes of one core of an EPYC (Zen 5) in
bf16: held out, loss 3.88, ignoring the input 4.43. Then recipes/transfer.py --mode knn linear, per cent of 4,000 test
images with 1, 10 and 100 % of the labels: linear 37.2, 46.1, 49.8, k-NN 34.9, 42.7, 47.5. Before training 25.2, 37.7,
42.8 and 23.8, 32.1, 40.1; raw pixels 27.4, 35.8, 41.0 and 21.1, 26.9, 33.9.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.arguments import TrainArgs, command, flag
from mmssl.data.images import pictures, views
from mmssl.evaluation.neighbours import Neighbours
from mmssl.methods import colorization
from mmssl.models import image_encoders
from mmssl.pretrain import pretrain, start
from mmssl.training import optim

FIGURE = "Held-out images, what the encoder sees of them, the predicted colours (annealed mean), and the true colours."


@dataclass
class ColorizationArgs(image_encoders.EncoderArgs, pictures.PictureArgs, TrainArgs):
    output_dir: str = flag("runs/colorization", "where the encoder, log, figures and checkpoints go")
    dataset: str = flag("emoji", "emoji (built in), a Parquet file, a folder of images, or a Hub id; not grey images")
    decoder_dim: int = flag(256, "channels of the decoder", at_least=1, at_most=16384)
    smallest_crop: float = flag(0.4, "smallest fraction of an image's area in a crop", above=0, at_most=1)

    num_train_epochs: float = flag(45, "passes over the data")
    learning_rate: float = flag(2e-3, "peak learning rate")
    weight_decay: float = flag(1e-3, "weight decay of matrices; biases and norms have none")  # section 3.1
    warmup_steps: float = flag(0.05, "linear warm-up steps; below 1, a fraction of the run")


def main(args: ColorizationArgs) -> None:
    start(args)
    source = pictures.find(args)
    encoder, processor = image_encoders.build(args, source.side)
    train, held_out = source.decoded(processor, args)
    view = views.made_for(processor, [views.View(scale=(args.smallest_crop, 1.0), jitter=0.0, grey=0.0)])
    counted = colorization.count_colours(train, view)
    method = colorization.Colorization(encoder, view, counted, args.decoder_dim)
    optimizer = optim.from_args(method, args)
    grey = method.errors_of_grey(held_out)
    evaluation = Neighbours(held_out, processor, args.per_device_train_batch_size, task=FIGURE, chance=grey)
    data = pictures.described(train, held_out)
    pretrain(args, method, processor, train, [optimizer], evaluation, **data)


if __name__ == "__main__":
    command(main, ColorizationArgs, __doc__)
