"""BYOL: trains on unlabelled images, leaves an image encoder (ResNetModel or ViTModel).

accelerate launch recipes/byol.py                                    # scikit-learn's digits, built in
accelerate launch recipes/byol.py --dataset my_folder --encoder resnet18 --image_size 96
accelerate launch recipes/byol.py --dataset my_folder --num_train_epochs 1000 --momentum 0.996      # a long run

20,000 images of CIFAR-10 (--dataset cifar10), the defaults, seed 0, 17 minutes of one core of an EPYC (Zen 5) in bf16;
then recipes/transfer.py --mode knn linear --labels 100%, per cent of 4,000 test images: linear 55.0, k-NN 50.3. Before
training 42.8, 40.1; raw pixels 41.0, 33.9; SimCLR 62.0, 60.1. Short runs on a validation part: a learning rate of 2e-3
gains .7 in the linear probe, a momentum of .96 gains .3 there and 2.6 in k-NN.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.arguments import TrainArgs, command, flag
from mmssl.data.images import pictures, views
from mmssl.evaluation.neighbours import Neighbours
from mmssl.methods.byol import BYOL
from mmssl.models import image_encoders
from mmssl.pretrain import pretrain, start
from mmssl.training import optim


@dataclass
class ByolArgs(image_encoders.EncoderArgs, pictures.PictureArgs, TrainArgs):
    output_dir: str = flag("runs/byol", "where the encoder, log, figures and checkpoints go")
    hidden_dim: int = flag(1024, "width of the hidden layers of the heads", at_least=1, at_most=16384)
    projection_dim: int = flag(256, "dimension of the projections that are compared", at_least=1, at_most=16384)
    momentum: float = flag(
        0.99, "momentum of the target's moving average at the first step; grows to 1", at_least=0, at_most=1
    )
    smallest_crop: float = flag(0.2, "smallest fraction of an image's area in a crop", above=0, at_most=1)

    num_train_epochs: float = flag(34, "passes over the data")
    learning_rate: float = flag(1e-3, "peak learning rate")
    weight_decay: float = flag(1e-2, "weight decay of matrices; biases and norms have none")
    warmup_steps: float = flag(0.05, "linear warm-up steps; below 1, a fraction of the run")


def main(args: ByolArgs) -> None:
    start(args)
    source = pictures.find(args)
    encoder, processor = image_encoders.build(args, source.side)
    train, held_out = source.decoded(processor, args)
    two_views = views.made_for(processor, views.byol(source.side, (args.smallest_crop, 1.0)))
    method = BYOL(encoder, two_views, args.hidden_dim, args.projection_dim, args.momentum)
    optimizer = optim.from_args(method, args)
    evaluation = Neighbours(held_out, processor, args.per_device_train_batch_size)
    data = pictures.described(train, held_out)
    pretrain(args, method, processor, train, [optimizer], evaluation, **data)


if __name__ == "__main__":
    command(main, ByolArgs, __doc__)
