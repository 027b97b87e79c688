"""VQ-VAE: trains on unlabelled images, leaves an image encoder (ViTModel or ResNetModel).

accelerate launch recipes/vqvae.py                                             # scikit-learn's digits, built in
accelerate launch recipes/vqvae.py --dataset my_folder --image_size 64 --patch_size 8 --entries 1024

20,000 images of CIFAR-10 (--dataset cifar10 --flip 0.5 --num_train_epochs 8), seed 0, eight minutes of one core of an
EPYC (Zen 5) in bf16; held-out images: squared error .098, the mean image 1.20; the codes are as many as 443 of 512
entries used alike (perplexity). recipes/transfer.py --mode knn linear --labels 100%, per cent of 4,000 test images:
linear 45.6, untrained 42.4; k-NN 30.5, 30.1.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.arguments import TrainArgs, command, flag
from mmssl.data.images import decoding, pictures, views
from mmssl.evaluation.restoration import Restoration
from mmssl.methods.vqvae import VQVAE
from mmssl.models import image_encoders
from mmssl.pretrain import pretrain, start
from mmssl.training import optim

SHOWN = "Held-out images, their reconstructions, and their codes, each entry of the codebook in a colour of its own."


@dataclass
class VqvaeArgs(image_encoders.EncoderArgs, pictures.PictureArgs, TrainArgs):
    output_dir: str = flag("runs/vqvae", "where the encoder, log, figures and checkpoints go")
    encoder: str = image_encoders.encoder_flag(
        "vit-micro", what="encoder; each patch, or place of its last map, gets a code"
    )
    entries: int = flag(512, "entries of the codebook", at_least=2, at_most=65536)
    code_dim: int = flag(64, "dimension of an entry", at_least=1, at_most=4096)
    commitment: float = flag(0.25, "weight of the loss that keeps the encoder near its codes", at_least=0, at_most=1e4)
    restart: float = flag(
        0.1,
        "entries used fewer times in a step, by a moving average, are moved to random outputs of the encoder; 0: never",
        at_least=0, at_most=1e6,
    )  # fmt: skip
    flip: float = flag(0.0, "probability of a horizontal flip; 0 for digits and letters", at_least=0, at_most=1)

    num_train_epochs: float = flag(60, "passes over the data")
    learning_rate: float = flag(1e-3, "peak learning rate")
    warmup_steps: float = flag(0.05, "linear warm-up steps; below 1, a fraction of the run")


def main(args: VqvaeArgs) -> None:
    start(args)
    source = pictures.find(args)
    encoder, processor = image_encoders.build(args, source.side)
    train, held_out = source.decoded(processor, args)
    view = views.made_for(processor, [views.whole(args.flip)])
    codes = args.entries, args.code_dim, args.commitment, args.restart
    method = VQVAE(encoder, view, decoding.shape(processor), *codes)
    evaluation = Restoration(
        train, held_out, processor, args.per_device_train_batch_size, task=SHOWN, chance={"code_perplexity": 1.0}
    )
    optimizers, data = [optim.from_args(method, args)], pictures.described(train, held_out)
    pretrain(args, method, processor, train, optimizers, evaluation, **data)


if __name__ == "__main__":
    command(main, VqvaeArgs, __doc__)
