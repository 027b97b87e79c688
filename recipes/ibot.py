"""iBOT: trains on unlabelled images, leaves a ViTModel.

accelerate launch recipes/ibot.py                                      # scikit-learn's digits, built in
accelerate launch recipes/ibot.py --dataset my_folder --encoder vit-tiny --image_size 96 --patch_size 8
accelerate launch recipes/ibot.py --dataset my_folder --encoder vit-small --image_size 224 --patch_size 16 \
    --small_views 10 --boundary 0.4 --prototypes 8192 --hidden_dim 2048 --bottleneck_dim 256 --momentum 0.996 \
    --teacher_temperature 0.07    # as in the paper

The defaults are for images of 32 pixels and runs of minutes: no small views (--small_views), and a teacher that follows
fast (--momentum) and stays sharp (--teacher_temperature). iBOT, like other ViTs that learn from views, needs far longer
runs than a ResNet under SimCLR.

20,000 images of CIFAR-10 (--dataset cifar10 --patch_size 8 --per_device_train_batch_size 128), seed 0, 14 minutes of
one core of an EPYC (Zen 5) in bf16; then recipes/transfer.py --mode knn linear --labels 100%, per cent of 4,000 test
images: linear 40.8, k-NN 34.5; the same ViT before training 36.5, 28.8; raw pixels 41.0, 33.9. With small views and a
boundary of 0.4, 5 passes were below the ViT before training.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.arguments import TrainArgs, command, flag
from mmssl.data.images import pictures, views
from mmssl.evaluation.neighbours import Neighbours
from mmssl.methods.ibot import IBOT
from mmssl.models import image_encoders, vit_tokens
from mmssl.pretrain import pretrain, start
from mmssl.training import optim


@dataclass
class IbotArgs(views.MultiCropArgs, image_encoders.EncoderArgs, pictures.PictureArgs, TrainArgs):
    output_dir: str = flag("runs/ibot", "where the encoder, log, figures and checkpoints go")
    encoder: str = image_encoders.encoder_flag("vit-micro", image_encoders.VITS)
    prototypes: int = flag(1024, "outputs of the head", at_least=2, at_most=262144)
    hidden_dim: int = flag(512, "width of the head's hidden layers", at_least=1, at_most=16384)
    bottleneck_dim: int = flag(128, "dimension in which prototypes are compared", at_least=1, at_most=16384)
    momentum: float = flag(0.95, "momentum of the teacher at the first step; grows to 1", at_least=0, at_most=1)
    teacher_temperature: float = flag(
        0.04, "temperature of the teacher's softmax, grown from 0.04 in the first 30 % of the run", above=0, at_most=100
    )
    patch_weight: float = flag(1.0, "weight of the loss on masked patches", at_least=0, at_most=1000)
    freeze_prototypes_fraction: float = flag(
        0.02, "fraction of the run, its beginning, in which the prototypes are not trained", at_least=0, below=1
    )

    num_train_epochs: float = flag(20, "passes over the data")
    learning_rate: float = flag(1e-3, "peak learning rate")
    weight_decay: float = flag(0.04, "weight decay of matrices; biases and norms have none")
    warmup_steps: float = flag(0.1, "linear warm-up steps; below 1, a fraction of the run")


def main(args: IbotArgs) -> None:
    start(args)
    source = pictures.find(args)
    encoder, processor = image_encoders.build(args, source.side, vit_tokens.initialise)
    train, held_out = source.decoded(processor, args)
    crops = views.multi_crop_from_args(args, processor, image_encoders.patch_size(encoder))
    head = args.prototypes, args.hidden_dim, args.bottleneck_dim
    settings = args.momentum, args.patch_weight, args.teacher_temperature, args.freeze_prototypes_fraction
    method = IBOT(encoder, crops, 2, *head, *settings)
    optimizer = optim.from_args(method, args)
    evaluation = Neighbours(held_out, processor, args.per_device_train_batch_size)
    data = pictures.described(train, held_out)
    pretrain(args, method, processor, train, [optimizer], evaluation, **data)


if __name__ == "__main__":
    command(main, IbotArgs, __doc__)
