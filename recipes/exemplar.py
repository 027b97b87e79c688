"""Exemplar-CNN: each image is a class; trains on unlabelled images, leaves an encoder (ResNetModel or ViTModel).

accelerate launch recipes/exemplar.py                                    # scikit-learn's digits, built in
accelerate launch recipes/exemplar.py --dataset my_folder --encoder resnet18 --image_size 96
accelerate launch recipes/exemplar.py --dataset my_folder --classes 16000 --num_train_epochs 1000   # a long run

A class is met once in an epoch, so more classes take longer to learn: see recipes/README.md. The classifier has a row
for each image: 1 KB, and 4 KB in training, with the default --hidden_dim 256.

20,000 images of CIFAR-10, of which it learns 4,000 (--dataset cifar10), the defaults, seed 0, 17 minutes of one core of
an EPYC (Zen 5) in bf16; recipes/transfer.py --mode knn linear --labels 100%, per cent of 4,000 test images: linear
59.8, k-NN 58.2. Before training 42.8, 40.1; raw pixels 41.0, 33.9; SimCLR 62.0, 60.1.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.arguments import TrainArgs, command, flag
from mmssl.data.images import numbered, pictures, views
from mmssl.evaluation.neighbours import Neighbours
from mmssl.methods.exemplar import Exemplar, exemplar
from mmssl.models import image_encoders
from mmssl.pretrain import pretrain, start
from mmssl.training import optim


@dataclass
class ExemplarArgs(image_encoders.EncoderArgs, pictures.PictureArgs, TrainArgs):
    output_dir: str = flag("runs/exemplar", "where the encoder, log, figures and checkpoints go")
    classes: int = flag(4000, "largest number of images to learn from, drawn with --seed", at_least=2, at_most=10**8)
    hidden_dim: int = flag(256, "dimension of the layer before the classifier", at_least=1, at_most=16384)
    temperature: float = flag(0.1, "softmax temperature", above=0, at_most=100)
    smallest_crop: float = flag(0.1, "smallest fraction of an image's area in a crop", above=0, at_most=1)

    num_train_epochs: float = flag(380, "passes over the images that are learned from")
    learning_rate: float = flag(2e-3, "peak learning rate")
    weight_decay: float = flag(1e-4, "weight decay of matrices; biases and norms have none")
    warmup_steps: float = flag(0.05, "linear warm-up steps; below 1, a fraction of the run")


def main(args: ExemplarArgs) -> None:
    start(args)
    source = pictures.find(args)
    encoder, processor = image_encoders.build(args, source.side)
    train, held_out = source.decoded(processor, args)
    images = numbered.Numbered(train, args.classes, args.seed)
    view = views.made_for(processor, [exemplar(source.side, (args.smallest_crop, 1.0))])
    method = Exemplar(encoder, view, len(images), args.hidden_dim, args.temperature)
    optimizer = optim.from_args(method, args)
    evaluation = Neighbours(held_out, processor, args.per_device_train_batch_size, images.copies(len(held_out)))
    data = pictures.described(train, held_out) | {"trained_on": f"{len(images):,} images, each a class"}
    pretrain(args, method, processor, images, [optimizer], evaluation, **data)


if __name__ == "__main__":
    command(main, ExemplarArgs, __doc__)
