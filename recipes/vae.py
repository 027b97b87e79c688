"""VAE: trains on unlabelled images, leaves an image encoder (ResNetModel or ViTModel).

accelerate launch recipes/vae.py                                             # scikit-learn's digits, built in
accelerate launch recipes/vae.py --likelihood bernoulli                      # binarised digits, as in the paper
accelerate launch recipes/vae.py --dataset my_folder --beta 4 --code_dim 32  # beta-VAE

20,000 images of CIFAR-10 (--dataset cifar10 --flip 0.5 --num_train_epochs 15), seed 0, five minutes of one core of an
EPYC (Zen 5) in bf16; held-out images: 6.86 bits for each value, one distribution for each pixel 7.98, before training
8.45; all 32 numbers of the code are in use; Frechet distance of 256 drawn images .63, real ones .28; squared error of
reconstructions .264, of 32 principal components .240. recipes/transfer.py --mode knn linear --labels 100%, per cent of
4,000 test images: linear 44.7, untrained 42.8; k-NN 44.7, 40.1.

Drawn digits of MNIST (--dataset mnist5k, five minutes, at commit f2c295b) are blurred: a classifier of real digits of
32 pixels is 38.2 % sure of them, of real ones 80.7; with --code_dim 8 48.3 %; with --likelihood bernoulli, too, 59.4 %
(14 minutes of a Xeon beside other work). It takes 35.5 % of the latter for no digit (4.3 % of real ones); its
confidence among the ten digits is 86.7 %, in real ones 93.1.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.arguments import TrainArgs, command, flag
from mmssl.data.images import decoding, pictures, views
from mmssl.evaluation.generated import Generated, GeneratedArgs
from mmssl.evaluation.restoration import Restoration
from mmssl.methods.vae import LIKELIHOODS, VAE
from mmssl.models import image_encoders
from mmssl.pretrain import pretrain, start
from mmssl.training import optim

SHOWN = (
    "Held-out images and their reconstructions; images decoded from random codes; and images decoded between the code "
    "of this image and that of the next row's."
)


@dataclass
class VaeArgs(GeneratedArgs, image_encoders.EncoderArgs, pictures.PictureArgs, TrainArgs):
    output_dir: str = flag("runs/vae", "where the encoder, log, figures and checkpoints go")
    code_dim: int = flag(32, "numbers in the code", at_least=1, at_most=16384)
    beta: float = flag(1.0, "weight of the KL divergence; 1: the bound of the likelihood", at_least=0, at_most=1e4)
    likelihood: str = flag("logistic", "of 8-bit values, or of values that are 0 or 1: bernoulli", LIKELIHOODS)
    flip: float = flag(0.0, "probability of a horizontal flip; 0 for digits and letters", at_least=0, at_most=1)

    num_train_epochs: float = flag(60, "passes over the data")
    learning_rate: float = flag(1e-3, "peak learning rate")
    warmup_steps: float = flag(0.05, "linear warm-up steps; below 1, a fraction of the run")


def main(args: VaeArgs) -> None:
    start(args)
    source = pictures.find(args)
    encoder, processor = image_encoders.build(args, source.side)
    train, held_out = source.decoded(processor, args)
    view = views.made_for(processor, [views.whole(args.flip)])
    method = VAE(encoder, view, decoding.shape(processor), args.code_dim, args.beta, args.likelihood)
    optimizer = optim.from_args(method, args)
    batch, unused = args.per_device_train_batch_size, {"kl": 0.0, "active_units": 0.0}
    own = Restoration(train, held_out, processor, batch, args.code_dim, SHOWN, unused)
    evaluation = Generated(own, args, train, held_out, processor)
    data = pictures.described(train, held_out)
    pretrain(args, method, processor, train, [optimizer], evaluation, **data)


if __name__ == "__main__":
    command(main, VaeArgs, __doc__)
