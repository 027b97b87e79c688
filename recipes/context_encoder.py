"""Context encoder: trains on unlabelled images with a hole, leaves an image encoder (ResNetModel or ViTModel).

accelerate launch recipes/context_encoder.py                                       # scikit-learn's digits, built in
accelerate launch recipes/context_encoder.py --dataset my_folder --image_size 128 --overlap 7     # as in the paper
accelerate launch recipes/context_encoder.py --dataset my_folder --region random --adversarial 0  # squared error alone

20,000 images of CIFAR-10 (--dataset cifar10 --augmentation crop_flip --num_train_epochs 12), seed 0, nine minutes of
one core of an EPYC (Zen 5) in bf16. Squared error in the hole of held-out images, in normalised pixels: .50; the
nearest pixel outside copied .76, the mean image 1.07, the mean colour 1.08. recipes/transfer.py --mode knn linear
--labels 100%, per cent of 4,000 test images: linear 46.2, untrained 42.8; k-NN 38.8, 40.1.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.arguments import TrainArgs, command, flag
from mmssl.data.images import decoding, pictures, views
from mmssl.evaluation.restoration import Restoration, nearest_pixel
from mmssl.methods.context_encoder import REGIONS, ContextEncoder
from mmssl.models import image_encoders
from mmssl.pretrain import pretrain, start
from mmssl.training import steps

DISCRIMINATOR = "bit-micro"
AUGMENTATIONS = {"crop_flip": views.CROP_FLIP, "flip": views.FLIP, "crop": views.CROP, "none": views.WHOLE}
SHOWN = "Held-out images as the encoder gets them, with the hole filled, and as they are."


@dataclass
class ContextEncoderArgs(image_encoders.EncoderArgs, pictures.PictureArgs, TrainArgs):
    output_dir: str = flag("runs/context_encoder", "where the encoder, log, figures and checkpoints go")
    region: str = flag("centre", "hide the centre, or random rectangles", REGIONS)
    code_dim: int = flag(256, "numbers between encoder and decoder", at_least=1, at_most=16384)
    overlap: int = flag(1, "pixels at the border of the hole that the encoder sees, weighted 10 times", at_least=0)
    adversarial: float = flag(1e-3, "weight of the adversarial loss", at_least=0, below=1)
    augmentation: str = flag("none", "crops and flips of training images", AUGMENTATIONS)

    num_train_epochs: float = flag(40, "passes over the data")
    learning_rate: float = flag(2e-3, "peak learning rate of encoder and decoder")
    discriminator_learning_rate: float = flag(
        2e-4, "peak learning rate of the discriminator; a tenth of the other, as in the paper", above=0, at_most=1e4
    )
    warmup_steps: float = flag(0.05, "linear warm-up steps; below 1, a fraction of the run")


def main(args: ContextEncoderArgs) -> None:
    start(args)
    source = pictures.find(args)
    encoder, processor = image_encoders.build(args, source.side)
    train, held_out = source.decoded(processor, args)
    shape, view = decoding.shape(processor), views.made_for(processor, [AUGMENTATIONS[args.augmentation]])
    discriminator, _ = image_encoders.from_scratch(DISCRIMINATOR, max(shape))
    hole = args.region, args.code_dim, args.overlap, args.adversarial
    method = ContextEncoder(encoder, discriminator, view, shape, *hole)
    optimizers, step = steps.with_adversary(method, args)
    others = {"nearest pixel": nearest_pixel}
    evaluation = Restoration(train, held_out, processor, args.per_device_train_batch_size, task=SHOWN, others=others)
    data = pictures.described(train, held_out)
    pretrain(args, method, processor, train, optimizers, evaluation, step=step, **data)


if __name__ == "__main__":
    command(main, ContextEncoderArgs, __doc__)
