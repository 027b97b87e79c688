"""VAE: trains on unlabelled images, leaves an image encoder (ResNetModel or ViTModel).

accelerate launch recipes/vae.py                                             # scikit-learn's digits, built in
accelerate launch recipes/vae.py --likelihood bernoulli                      # binarised digits, as in the paper
accelerate launch recipes/vae.py --dataset my_folder --beta 4 --code_dim 32  # beta-VAE
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
    flip: bool = flag(False, "flip half of the training images: not for digits and letters")

    num_train_epochs: float = flag(60, "passes over the data")
    learning_rate: float = flag(1e-3, "peak learning rate")
    warmup_steps: float = flag(0.05, "linear warm-up steps; below 1, a fraction of the run")


def main(args: VaeArgs) -> None:
    start(args)
    source = pictures.find(args)
    encoder, processor = image_encoders.build(args, source.side)
    train, held_out = source.decoded(processor, args)
    view = views.made_for(processor, [views.FLIP if args.flip else views.WHOLE])
    method = VAE(encoder, view, decoding.shape(processor), args.code_dim, args.beta, args.likelihood)
    optimizer = optim.from_args(method, args)
    batch, unused = args.per_device_train_batch_size, {"kl": 0.0, "active_units": 0.0}
    own = Restoration(train, held_out, processor, batch, args.code_dim, SHOWN, unused)
    evaluation = Generated(own, args, train, held_out, processor)
    data = pictures.described(train, held_out)
    pretrain(args, method, processor, train, [optimizer], evaluation, base_model=args.model_name_or_path, **data)


if __name__ == "__main__":
    command(main, VaeArgs, __doc__)
