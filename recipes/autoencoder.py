"""Autoencoder: trains on unlabelled images, leaves an image encoder (ResNetModel, ViTModel, or one linear layer).

accelerate launch recipes/autoencoder.py                                        # scikit-learn's digits, built in
accelerate launch recipes/autoencoder.py --kind linear --num_train_epochs 300   # finds the principal components
accelerate launch recipes/autoencoder.py --kind sparse --code_dim 256
accelerate launch recipes/autoencoder.py --kind denoising --corruption gaussian --noise 0.5 --dataset my_folder

20,000 images of CIFAR-10 (--dataset cifar10 --num_train_epochs 20 --code_dim 256), seed 0, five and a half minutes of
one core of an EPYC (Zen 5) in bf16; then recipes/transfer.py --mode knn linear --labels 100%, per cent of 4,000 test
images: linear 46.8, k-NN 47.1; with --kind denoising --corruption gaussian --noise 1 47.8, 47.0; before training 42.8,
40.1. The held-out squared error is .184, of 256 principal components .047; denoising .200, of the noisy images
projected on those components .130.

Settings were chosen on 2,000 of the training images, 12 passes, linear and k-NN: 45.3, 45.3 with a code of 32 numbers,
denoising 45.5, 44.2 (of images with 75 % of the pixels hidden 45.4, 43.1); 47.0, 48.4 with 256, denoising 48.1, 46.8. A
code of the whole last map instead of its mean over places, 32 numbers: as small an error (.260, .261), worse features
(43.5, 41.2).
"""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.arguments import TrainArgs, command, flag
from mmssl.data.images import pictures, views
from mmssl.evaluation.restoration import Restoration
from mmssl.methods import autoencoder
from mmssl.models import image_encoders
from mmssl.pretrain import pretrain, start
from mmssl.training import optim

AUGMENTATIONS = {"crop_flip": views.CROP_FLIP, "crop": views.CROP, "none": views.WHOLE}
SHOWN = "Held-out images, what the encoder gets if that is not the image itself, and the reconstructions."


@dataclass
class AutoencoderArgs(image_encoders.EncoderArgs, pictures.PictureArgs, TrainArgs):
    output_dir: str = flag("runs/autoencoder", "where the encoder, log, figures and checkpoints go")
    kind: str = flag("undercomplete", "what keeps the code from being a copy of the image", autoencoder.KINDS)
    code_dim: int = flag(32, "numbers in the code", at_least=1, at_most=16384)
    penalty: str = flag("kl", "of a sparse code: kl to the mean activation rho, or l1", autoencoder.PENALTIES)
    sparsity_weight: float = flag(1e-3, "weight of the penalty", at_least=0, at_most=1e4)
    rho: float = flag(0.05, "mean activation of each number of a sparse code", above=0, below=1)
    corruption: str = flag("mask", "of the input of a denoising autoencoder", autoencoder.CORRUPTIONS)
    noise: float = flag(0.5, "fraction of hidden pixels, or deviation of Gaussian noise", at_least=0, at_most=10)
    augmentation: str = flag("none", "random crops of training images, with or without flips", AUGMENTATIONS)

    num_train_epochs: float = flag(60, "passes over the data")
    learning_rate: float = flag(2e-3, "peak learning rate")
    warmup_steps: float = flag(0.05, "linear warm-up steps; below 1, a fraction of the run")


def main(args: AutoencoderArgs) -> None:
    start(args)
    source = pictures.find(args)
    encoder, processor = autoencoder.build(args, source.side)
    train, held_out = source.decoded(processor, args)
    view = views.made_for(processor, [AUGMENTATIONS[args.augmentation]])
    method = autoencoder.from_args(args, encoder, processor, view, train)
    evaluation = Restoration(train, held_out, processor, args.per_device_train_batch_size, args.code_dim, task=SHOWN)
    data = pictures.described(train, held_out)
    optimizers = [optim.from_args(method, args)]
    pretrain(args, method, processor, train, optimizers, evaluation, **data)


if __name__ == "__main__":
    command(main, AutoencoderArgs, __doc__)
