"""DINO: trains on unlabelled images, leaves an image encoder (ResNetModel or ViTModel).

accelerate launch recipes/dino.py                                    # scikit-learn's digits, built in
accelerate launch recipes/dino.py --dataset my_folder --encoder vit-small --image_size 96 --patch_size 8 --norm none
accelerate launch recipes/dino.py --dataset my_folder --encoder vit-small --image_size 224 --patch_size 16 --norm none \
    --small_views 8 --boundary 0.4 --prototypes 65536 --hidden_dim 2048 --bottleneck_dim 256 --momentum 0.996  # paper

The defaults are for images of 32 pixels and runs of minutes: no small views (--small_views), which of such images would
be 16 pixels wide, and a teacher that follows fast (--momentum).

20,000 images of CIFAR-10 (--dataset cifar10), the defaults, seed 0, 13 minutes of one core of an EPYC (Zen 5) in bf16;
then recipes/transfer.py --mode knn linear --labels 100%, per cent of 4,000 test images: linear 57.1, k-NN 51.4. Before
training 42.8, 40.1; raw pixels 41.0, 33.9; SimCLR 62.0, 60.1. With --small_views 4 --boundary 0.4 --momentum 0.99, 8
passes in 7 minutes (Zen 4) reached 49.2 and 42.6.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.arguments import TrainArgs, command, flag
from mmssl.data.images import pictures, views
from mmssl.evaluation.neighbours import Neighbours
from mmssl.methods.dino import DINO
from mmssl.models import heads, image_encoders
from mmssl.pretrain import pretrain, start
from mmssl.training import optim


@dataclass
class DinoArgs(views.MultiCropArgs, image_encoders.EncoderArgs, pictures.PictureArgs, TrainArgs):
    output_dir: str = flag("runs/dino", "where the encoder, log, figures and checkpoints go")
    prototypes: int = flag(1024, "outputs of the head", at_least=2, at_most=2**18)
    hidden_dim: int = flag(512, "width of the head's hidden layers", at_least=1, at_most=16384)
    bottleneck_dim: int = flag(128, "dimension in which prototypes are compared", at_least=1, at_most=16384)
    momentum: float = flag(0.95, "momentum of the teacher at the first step; grows to 1", at_least=0, at_most=1)
    teacher_temperature: float = flag(
        0.04, "temperature of the teacher's softmax, grown from 0.04 in the first 30 % of the run", above=0, at_most=10
    )
    freeze_prototypes_fraction: float = flag(
        0.02, "fraction of the run, its beginning, in which the prototypes are not trained", at_least=0, below=1
    )
    norm: str = flag("batch", "norm of the head", tuple(heads.NORMS))

    num_train_epochs: float = flag(32, "passes over the data")
    learning_rate: float = flag(1e-3, "peak learning rate")
    weight_decay: float = flag(0.04, "weight decay of matrices; biases and norms have none")
    warmup_steps: float = flag(0.1, "linear warm-up steps; below 1, a fraction of the run")


def main(args: DinoArgs) -> None:
    start(args)
    source = pictures.find(args)
    encoder, processor = image_encoders.build(args, source.side)
    train, held_out = source.decoded(processor, args)
    crops = views.multi_crop_from_args(args, processor, image_encoders.patch_size(encoder))
    head = {"prototypes": args.prototypes, "hidden_dim": args.hidden_dim, "bottleneck_dim": args.bottleneck_dim}
    teacher = {"momentum": args.momentum, "teacher_temperature": args.teacher_temperature}
    head |= {"freeze_prototypes_fraction": args.freeze_prototypes_fraction, "norm": args.norm}
    method = DINO(encoder, crops, **head, **teacher)
    optimizer = optim.from_args(method, args)
    evaluation = Neighbours(held_out, processor, args.per_device_train_batch_size)
    data = pictures.described(train, held_out)
    pretrain(args, method, processor, train, [optimizer], evaluation, **data)


if __name__ == "__main__":
    command(main, DinoArgs, __doc__)
