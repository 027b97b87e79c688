"""DCGAN: trains on unlabelled images, leaves the discriminator's trunk as an image encoder (BitModel, ResNetModel or
ViTModel).

accelerate launch recipes/dcgan.py                                        # scikit-learn's digits, built in
accelerate launch recipes/dcgan.py --dataset my_folder --image_size 64 --flip 0.5

The first command, two minutes of one core of an EPYC (Zen 5) in bf16, seed 0; 256 drawn digits beside as many held-out
ones (before training; real training images): Frechet distance .56 (14.6; .11), 10 of 10 classes covered (2; 10),
confidence of a classifier of real digits of 32 pixels 42.9 % (4.1; 88.5).

20,000 images of CIFAR-10 (--dataset cifar10 --flip 0.5 --num_train_epochs 8), seven minutes: Frechet distance .98
(11.0; .28). recipes/transfer.py --mode knn linear --labels 100%, per cent of 4,000 test images: linear 43.1, before
training 35.8; k-NN 37.3, 33.0. With batches of 256 and a discriminator at 1e-4, a quarter of the steps: Frechet
distance 9.8; linear 38.0, k-NN 35.0.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.arguments import TrainArgs, command, flag
from mmssl.data.images import decoding, pictures, views
from mmssl.evaluation.generated import Generated, GeneratedArgs
from mmssl.evaluation.neighbours import Neighbours
from mmssl.methods.dcgan import DCGAN
from mmssl.models import image_encoders
from mmssl.pretrain import pretrain, start
from mmssl.training import optim, steps

SHOWN = "Held-out images, and images that are generated from the same noise in every run."


@dataclass
class DcganArgs(GeneratedArgs, image_encoders.EncoderArgs, pictures.PictureArgs, TrainArgs):
    output_dir: str = flag("runs/dcgan", "where the encoder, log, figures and checkpoints go")
    encoder: str = image_encoders.encoder_flag("bit-micro", what="the discriminator's trunk")
    noise_dim: int = flag(100, "numbers that an image is generated from", at_least=1, at_most=16384)
    generator_width: int = flag(32, "channels of the generator at half the side", at_least=1, at_most=1024)
    translation: float = flag(0.125, "largest shift of what the discriminator sees", at_least=0, below=1)
    flip: float = flag(0.0, "probability of a horizontal flip; 0 for digits and letters", at_least=0, at_most=1)

    per_device_train_batch_size: int = flag(64, "images per process in one micro-batch")
    num_train_epochs: float = flag(40, "passes over the data")
    learning_rate: float = flag(2e-4, "peak learning rate of the discriminator")
    generator_learning_rate: float = flag(1e-3, "peak learning rate of the generator", above=0, at_most=1e4)
    adam_beta1: float = flag(0.5, "AdamW's beta1")  # section 4 of the paper
    lr_scheduler_type: str = flag("constant", "schedule after the warm-up", ("cosine", "linear", "constant"))


def main(args: DcganArgs) -> None:
    start(args)
    source = pictures.find(args)
    trunk, processor = image_encoders.build(args, source.side)
    train, held_out = source.decoded(processor, args)
    view = views.made_for(processor, [views.whole(args.flip)])
    method = DCGAN(trunk, view, decoding.shape(processor), args.noise_dim, args.generator_width, args.translation)
    optimizers = optim.of_players(method, args, args.learning_rate, args.generator_learning_rate)
    own = Neighbours(held_out, processor, args.per_device_train_batch_size, task=SHOWN)
    evaluation = Generated(own, args, train, held_out, processor)
    data = pictures.described(train, held_out)
    pretrain(args, method, processor, train, optimizers, evaluation, step=steps.alternating, **data)


if __name__ == "__main__":
    command(main, DcganArgs, __doc__)
