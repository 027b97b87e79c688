"""SwAV: trains on unlabelled images, leaves an image encoder (ResNetModel or ViTModel).

accelerate launch recipes/swav.py                                    # scikit-learn's digits, built in
accelerate launch recipes/swav.py --dataset my_folder --encoder resnet18 --image_size 96
accelerate launch recipes/swav.py --dataset my_folder --encoder resnet50 --image_size 224 --small_views 6 \
    --boundary 0.14 --smallest_crop 0.05 --prototypes 3000 --queue_size 3840    # sections 3.2 and 4.1

20,000 images of CIFAR-10 (--dataset cifar10), the defaults, seeds 0 1 2, 16 minutes of one core of an EPYC (Zen 5) each
in bf16; then recipes/transfer.py --mode knn linear --labels 100%, per cent of 4,000 test images: linear 61.2 ± 0.6,
k-NN 56.2 ± 0.3. Before training 42.8, 40.1; raw pixels 41.0, 33.9; SimCLR 62.0, 60.1. With --small_views 4 --boundary
0.4, 8 passes in 5 minutes (Zen 4) reached 51.9 and 43.7.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.arguments import TrainArgs, command, flag
from mmssl.data.images import pictures, views
from mmssl.evaluation.neighbours import Neighbours
from mmssl.methods.swav import SwAV
from mmssl.models import image_encoders
from mmssl.pretrain import pretrain, start
from mmssl.training import optim


@dataclass
class SwavArgs(views.MultiCropArgs, image_encoders.EncoderArgs, pictures.PictureArgs, TrainArgs):
    output_dir: str = flag("runs/swav", "where the encoder, log, figures and checkpoints go")
    prototypes: int = flag(128, "number of prototypes, about 10 times that of the classes", at_least=2, at_most=2**18)
    hidden_dim: int = flag(512, "width of the head's hidden layer", at_least=1, at_most=16384)
    projection_dim: int = flag(128, "dimension in which prototypes are compared", at_least=1, at_most=16384)
    temperature: float = flag(0.1, "softmax temperature of the predictions", above=0, at_most=100)
    epsilon: float = flag(0.05, "softness of the assignments, at least 0.01", at_least=0.01, at_most=100)
    freeze_prototypes_fraction: float = flag(
        0.02, "fraction of the run, its beginning, in which the prototypes are not trained", at_least=0, below=1
    )
    queue_size: int = flag(0, "earlier images assigned together with a batch", at_least=0, at_most=2**22)

    num_train_epochs: float = flag(50, "passes over the data")
    learning_rate: float = flag(2e-3, "peak learning rate")
    weight_decay: float = flag(1e-4, "weight decay of matrices; biases and norms have none")
    warmup_steps: float = flag(0.05, "linear warm-up steps; below 1, a fraction of the run")


def main(args: SwavArgs) -> None:
    start(args)
    source = pictures.find(args)
    encoder, processor = image_encoders.build(args, source.side)
    train, held_out = source.decoded(processor, args)
    crops = views.multi_crop_from_args(args, processor, image_encoders.patch_size(encoder))
    head = {"prototypes": args.prototypes, "hidden_dim": args.hidden_dim, "projection_dim": args.projection_dim}
    task = {"temperature": args.temperature, "epsilon": args.epsilon, "queue_size": args.queue_size}
    method = SwAV(encoder, crops, **head, **task, freeze_prototypes_fraction=args.freeze_prototypes_fraction)
    optimizer = optim.from_args(method, args)
    evaluation = Neighbours(held_out, processor, args.per_device_train_batch_size)
    data = pictures.described(train, held_out)
    pretrain(args, method, processor, train, [optimizer], evaluation, **data)


if __name__ == "__main__":
    command(main, SwavArgs, __doc__)
