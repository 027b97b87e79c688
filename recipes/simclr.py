"""SimCLR: trains on unlabelled images, leaves an image encoder (ResNetModel or ViTModel).

accelerate launch recipes/simclr.py                                        # scikit-learn's digits, built in
accelerate launch recipes/simclr.py --dataset my_folder --encoder resnet18 --image_size 96
accelerate launch recipes/simclr.py --dataset my_folder --model_name_or_path microsoft/resnet-18   # continue

20,000 images of CIFAR-10, the defaults (--dataset cifar10: resnet-micro at 32 px, batches of 256), seed 0, 3,510 steps
in bf16, 33 minutes of one core of an EPYC (Zen 4; recipes/results/simclr_cifar10.json). Then recipes/transfer.py --mode
knn linear --labels 100%, per cent of 4,000 test images:

                 SimCLR   untrained   raw pixels   MAE (recipes/mae.py, half an hour of one core)   chance
    linear         61.3        42.8         41.0                                            53.3     10.0
    k-NN           59.7        40.1         33.9

Seeds 0 1 2: linear 62.0 ± 0.6, k-NN 60.1 ± 0.4; seeds 1 and 2 took 14 minutes each of one core of an EPYC (Zen 5).
The temperature was chosen on 2,000 images held out from the training images (recipes/README.md). Appendix B.9 of the
paper uses 0.5 for CIFAR-10: with it, 60 epochs reach 61.4 and 55.9.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.arguments import TrainArgs, command, flag
from mmssl.data.images import pictures, views
from mmssl.evaluation.neighbours import Neighbours
from mmssl.methods.simclr import SimCLR
from mmssl.models import image_encoders
from mmssl.pretrain import pretrain, start
from mmssl.training import optim


@dataclass
class SimclrArgs(image_encoders.EncoderArgs, pictures.PictureArgs, TrainArgs):
    output_dir: str = flag("runs/simclr", "where the encoder, log, figures and checkpoints go")
    projection_dim: int = flag(128, "dimension of the projections that are compared", at_least=1, at_most=16384)
    temperature: float = flag(0.1, "softmax temperature", above=0, at_most=100)
    smallest_crop: float = flag(0.2, "smallest fraction of an image's area in a crop", above=0, at_most=1)

    num_train_epochs: float = flag(45, "passes over the data")
    learning_rate: float = flag(2e-3, "peak learning rate")
    weight_decay: float = flag(1e-4, "weight decay of matrices; biases and norms have none")
    warmup_steps: float = flag(0.05, "linear warm-up steps; below 1, a fraction of the run")


def main(args: SimclrArgs) -> None:
    start(args)
    source = pictures.find(args)
    encoder, processor = image_encoders.build(args, source.side)
    train, held_out = source.decoded(processor, args)
    view = views.simclr(source.side, (args.smallest_crop, 1.0))
    method = SimCLR(encoder, views.made_for(processor, [view, view]), args.projection_dim, args.temperature)
    optimizer = optim.from_args(method, args)
    evaluation = Neighbours(held_out, processor, args.per_device_train_batch_size)
    data = pictures.described(train, held_out)
    pretrain(args, method, processor, train, [optimizer], evaluation, **data)


if __name__ == "__main__":
    command(main, SimclrArgs, __doc__)
