"""SimSiam: trains on unlabelled images, leaves an image encoder (ResNetModel or ViTModel).

accelerate launch recipes/simsiam.py                                    # scikit-learn's digits, built in
accelerate launch recipes/simsiam.py --dataset my_folder --encoder resnet18 --image_size 96
accelerate launch recipes/simsiam.py --dataset my_folder --encoder resnet50 --layers 3              # as in the paper

20,000 images of CIFAR-10 (--dataset cifar10), the defaults, seed 0, 15 minutes of one core of an EPYC (Zen 5) in bf16;
then recipes/transfer.py --mode knn linear --labels 100%, per cent of 4,000 test images: linear 55.9, k-NN 49.8. Before
training 42.8, 40.1; raw pixels 41.0, 33.9; SimCLR 62.0, 60.1. After 15 passes 52.4, 45.1.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.arguments import TrainArgs, command, flag
from mmssl.data.images import pictures, views
from mmssl.evaluation.neighbours import Neighbours
from mmssl.methods.simsiam import SimSiam
from mmssl.models import image_encoders
from mmssl.pretrain import pretrain, start
from mmssl.training import optim


@dataclass
class SimsiamArgs(image_encoders.EncoderArgs, pictures.PictureArgs, TrainArgs):
    output_dir: str = flag("runs/simsiam", "where the encoder, log, figures and checkpoints go")
    projection_dim: int = flag(2048, "dimension of projections and predictions", at_least=1, at_most=16384)
    hidden_dim: int = flag(512, "width of the predictor's bottleneck", at_least=1, at_most=16384)
    layers: int = flag(2, "layers of the projection; 3 for large images", at_least=1, at_most=16)
    smallest_crop: float = flag(0.2, "smallest fraction of an image's area in a crop", above=0, at_most=1)

    num_train_epochs: float = flag(36, "passes over the data")
    learning_rate: float = flag(1e-3, "peak learning rate")
    weight_decay: float = flag(1e-2, "weight decay of matrices; biases and norms have none")
    warmup_steps: float = flag(0.05, "linear warm-up steps; below 1, a fraction of the run")


def main(args: SimsiamArgs) -> None:
    start(args)
    source = pictures.find(args)
    encoder, processor = image_encoders.build(args, source.side)
    train, held_out = source.decoded(processor, args)
    view = views.simclr(source.side, (args.smallest_crop, 1.0))
    widths = args.projection_dim, args.hidden_dim
    method = SimSiam(encoder, views.made_for(processor, [view, view]), *widths, args.layers)
    optimizer = optim.from_args(method, args, constant=method.predictor)  # section 4.2: its rate is not lowered
    evaluation = Neighbours(held_out, processor, args.per_device_train_batch_size)
    data = pictures.described(train, held_out)
    pretrain(args, method, processor, train, [optimizer], evaluation, **data)


if __name__ == "__main__":
    command(main, SimsiamArgs, __doc__)
