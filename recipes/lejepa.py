"""LeJEPA: trains on unlabelled images, leaves an image encoder (ResNetModel or ViTModel).

accelerate launch recipes/lejepa.py                                    # scikit-learn's digits, built in
accelerate launch recipes/lejepa.py --dataset my_folder --encoder resnet18 --image_size 96 --small_views 6
accelerate launch recipes/lejepa.py --dataset my_folder --encoder vit-tiny --weight_decay 0.05

20,000 images of CIFAR-10 (--dataset cifar10), the defaults, seed 0, 22 minutes of one core of an EPYC (Zen 5) in bf16,
with other work beside it; recipes/transfer.py --mode knn linear --labels 100%, per cent of 4,000 test images: linear
58.3, k-NN 53.4. Before training 42.8, 40.1; raw pixels 41.0, 33.9; SimCLR 62.0, 60.1. Batch statistics of whole images,
estimated after the training, gain nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.arguments import TrainArgs, command, flag
from mmssl.data.images import pictures, views
from mmssl.evaluation.neighbours import Neighbours
from mmssl.methods.lejepa import LeJEPA
from mmssl.models import image_encoders
from mmssl.pretrain import pretrain, start
from mmssl.training import optim


@dataclass
class LejepaArgs(views.MultiCropArgs, image_encoders.EncoderArgs, pictures.PictureArgs, TrainArgs):
    output_dir: str = flag("runs/lejepa", "where the encoder, log, figures and checkpoints go")
    small_views: int = flag(4, "views of a small part of the image, at half its side", at_least=0, at_most=64)
    boundary: float = flag(0.3, "smallest area of the large views, largest of the small ones", above=0, at_most=1)
    hidden_dim: int = flag(1024, "inner width of the projector", at_least=1, at_most=16384)
    projection_dim: int = flag(64, "dimension of the embeddings", at_least=1, at_most=16384)
    sigreg_weight: float = flag(0.05, "weight of the test of normality, against that of equal views", above=0, below=1)
    slices: int = flag(256, "random directions in which normality is tested", at_least=1, at_most=65536)

    num_train_epochs: float = flag(30, "passes over the data")
    learning_rate: float = flag(2e-3, "peak learning rate")
    weight_decay: float = flag(5e-4, "weight decay of matrices; 0.05 for a ViT; biases and norms have none")
    warmup_steps: float = flag(0.05, "linear warm-up steps; below 1, a fraction of the run")


def main(args: LejepaArgs) -> None:
    start(args)
    source = pictures.find(args)
    encoder, processor = image_encoders.build(args, source.side)
    train, held_out = source.decoded(processor, args)
    crops = views.multi_crop_from_args(args, processor, image_encoders.patch_size(encoder))
    widths = {"hidden_dim": args.hidden_dim, "projection_dim": args.projection_dim}
    method = LeJEPA(encoder, crops, **widths, weight=args.sigreg_weight, slices=args.slices)
    optimizer = optim.from_args(method, args)
    evaluation = Neighbours(held_out, processor, args.per_device_train_batch_size)
    data = pictures.described(train, held_out)
    pretrain(args, method, processor, train, [optimizer], evaluation, **data)


if __name__ == "__main__":
    command(main, LejepaArgs, __doc__)
