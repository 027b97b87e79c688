"""MoCo v3: trains on unlabelled images, leaves an image encoder (ResNetModel or ViTModel).

accelerate launch recipes/moco_v3.py                                    # scikit-learn's digits, built in
accelerate launch recipes/moco_v3.py --dataset my_folder --encoder resnet18 --image_size 96
accelerate launch recipes/moco_v3.py --dataset my_folder --encoder vit-small --weight_decay 0.1        # as in the paper

20,000 images of CIFAR-10 (--dataset cifar10), the defaults, seed 0, 15 minutes of one core of an EPYC (Zen 5) in bf16;
then recipes/transfer.py --mode knn linear --labels 100%, per cent of 4,000 test images: linear 59.4, k-NN 57.1. Before
training 42.8, 40.1; raw pixels 41.0, 33.9; SimCLR 62.0, 60.1. On a validation part, the paper's temperature of 0.2 was
half a point lower in both, a momentum of 0.96 half a point lower in the linear probe.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.arguments import TrainArgs, command, flag
from mmssl.data.images import pictures, views
from mmssl.evaluation.neighbours import Neighbours
from mmssl.methods.moco_v3 import MoCoV3
from mmssl.models import image_encoders
from mmssl.pretrain import pretrain, start
from mmssl.training import optim


@dataclass
class MocoV3Args(image_encoders.EncoderArgs, pictures.PictureArgs, TrainArgs):
    output_dir: str = flag("runs/moco_v3", "where the encoder, log, figures and checkpoints go")
    hidden_dim: int = flag(1024, "width of the hidden layers of the heads", at_least=1, at_most=16384)
    projection_dim: int = flag(256, "dimension of the projections that are compared", at_least=1, at_most=16384)
    temperature: float = flag(0.1, "softmax temperature; 0.2 in the paper", above=0, at_most=100)
    momentum: float = flag(0.99, "momentum of the moving average at the first step; grows to 1", at_least=0, at_most=1)
    freeze_patches: bool = flag(True, "do not train the patch projection of a ViT, for stability")
    smallest_crop: float = flag(0.2, "smallest fraction of an image's area in a crop", above=0, at_most=1)

    num_train_epochs: float = flag(34, "passes over the data")
    learning_rate: float = flag(2e-3, "peak learning rate")
    weight_decay: float = flag(1e-4, "weight decay of matrices; biases and norms have none")
    warmup_steps: float = flag(0.05, "linear warm-up steps; below 1, a fraction of the run")


def main(args: MocoV3Args) -> None:
    start(args)
    source = pictures.find(args)
    encoder, processor = image_encoders.build(args, source.side)
    train, held_out = source.decoded(processor, args)
    two_views = views.made_for(processor, views.byol(source.side, (args.smallest_crop, 1.0)))
    numbers = args.hidden_dim, args.projection_dim, args.temperature, args.momentum
    method = MoCoV3(encoder, two_views, *numbers, freeze_patches=args.freeze_patches)
    optimizer = optim.from_args(method, args)
    evaluation = Neighbours(held_out, processor, args.per_device_train_batch_size)
    data = pictures.described(train, held_out)
    pretrain(args, method, processor, train, [optimizer], evaluation, **data)


if __name__ == "__main__":
    command(main, MocoV3Args, __doc__)
