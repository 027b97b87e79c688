"""MoCo v2, or v1: trains on unlabelled images, leaves an image encoder (ResNetModel or ViTModel).

accelerate launch recipes/moco.py                                    # scikit-learn's digits, built in
accelerate launch recipes/moco.py --dataset my_folder --encoder resnet18 --image_size 96
accelerate launch recipes/moco.py --layers 1 --temperature 0.07 --queue_size 65536 --momentum 0.999   # v1

20,000 images of CIFAR-10 (--dataset cifar10), the defaults, seed 0, 21 minutes of one core of an EPYC (Zen 4) in bf16;
then recipes/transfer.py --mode knn linear --labels 100%, per cent of 4,000 test images: linear 59.4, k-NN 56.7. Before
training 42.8, 40.1; raw pixels 41.0, 33.9; SimCLR 62.0, 60.1. With the paper's temperature of 0.2, a short run on a
validation part reached 49.0 and 40.1, with 0.1 51.6 and 45.6.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.arguments import TrainArgs, command, flag
from mmssl.data.images import pictures, views
from mmssl.evaluation.neighbours import Neighbours
from mmssl.methods.moco import MoCo
from mmssl.models import image_encoders
from mmssl.pretrain import pretrain, start
from mmssl.training import optim


@dataclass
class MocoArgs(image_encoders.EncoderArgs, pictures.PictureArgs, TrainArgs):
    output_dir: str = flag("runs/moco", "where the encoder, log, figures and checkpoints go")
    projection_dim: int = flag(128, "dimension of the projections that are compared", at_least=1, at_most=16384)
    layers: int = flag(2, "layers of the head: 2 in v2, 1 in v1", at_least=1, at_most=16)
    queue_size: int = flag(4096, "number of keys of earlier images in the queue", at_least=1, at_most=2**22)
    temperature: float = flag(0.1, "softmax temperature; 0.07 in v1, 0.2 in v2", above=0, at_most=100)
    momentum: float = flag(0.99, "momentum of the key encoder's moving average", at_least=0, at_most=1)
    smallest_crop: float = flag(0.2, "smallest fraction of an image's area in a crop", above=0, at_most=1)

    num_train_epochs: float = flag(70, "passes over the data")
    learning_rate: float = flag(2e-3, "peak learning rate")
    weight_decay: float = flag(1e-4, "weight decay of matrices; biases and norms have none")
    warmup_steps: float = flag(0.05, "linear warm-up steps; below 1, a fraction of the run")


def main(args: MocoArgs) -> None:
    start(args)
    source = pictures.find(args)
    encoder, processor = image_encoders.build(args, source.side)
    train, held_out = source.decoded(processor, args)
    view = views.simclr(source.side, (args.smallest_crop, 1.0))
    head, task = (args.projection_dim, args.layers), (args.queue_size, args.temperature, args.momentum)
    method = MoCo(encoder, views.made_for(processor, [view, view]), *head, *task)
    optimizer = optim.from_args(method, args)
    evaluation = Neighbours(held_out, processor, args.per_device_train_batch_size)
    data = pictures.described(train, held_out)
    pretrain(args, method, processor, train, [optimizer], evaluation, **data)


if __name__ == "__main__":
    command(main, MocoArgs, __doc__)
