"""I-JEPA: trains on unlabelled images, leaves a ViTModel.

accelerate launch recipes/ijepa.py                                     # scikit-learn's digits, built in
accelerate launch recipes/ijepa.py --dataset my_folder --encoder vit-tiny --image_size 96 --patch_size 8
accelerate launch recipes/ijepa.py --dataset my_folder --encoder vit-base --image_size 224 --patch_size 16 \
    --predictor_width 384 --predictor_layers 6 --predictor_heads 12 --momentum 0.996    # as in the paper

20,000 images of CIFAR-10 (--dataset cifar10 --num_train_epochs 8), seed 0, 10 minutes of one core of an EPYC (Zen 5) in
bf16; then recipes/transfer.py --mode knn linear --labels 100%, per cent of 4,000 test images: linear 45.7, k-NN 35.7;
the same ViT before training 42.4, 30.1; raw pixels 41.0, 33.9. In batches of 256 with a momentum of 0.95, 14 passes in
19 minutes reached 42.9 and 31.3: it needs many steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.arguments import TrainArgs, command, flag
from mmssl.data.images import pictures, views
from mmssl.evaluation.neighbours import Neighbours
from mmssl.methods.ijepa import IJEPA
from mmssl.models import image_encoders, vit_tokens
from mmssl.pretrain import pretrain, start
from mmssl.training import optim


@dataclass
class IjepaArgs(image_encoders.EncoderArgs, pictures.PictureArgs, TrainArgs):
    output_dir: str = flag("runs/ijepa", "where the encoder, log, figures and checkpoints go")
    encoder: str = image_encoders.encoder_flag("vit-micro", image_encoders.VITS)
    predictor_width: int = flag(64, "width of the predictor", at_least=4, at_most=16384)
    predictor_layers: int = flag(3, "layers of the predictor", at_least=1, at_most=64)
    predictor_heads: int = flag(2, "attention heads of the predictor", at_least=1, at_most=256)
    momentum: float = flag(0.98, "momentum of the target at the first step; grows to 1", at_least=0, at_most=1)
    context_ratio: float = flag(0.5, "largest fraction of the patches in the context", above=0, at_most=1)
    smallest_crop: float = flag(0.3, "smallest fraction of an image's area in a crop", above=0, at_most=1)

    num_train_epochs: float = flag(12, "passes over the data")
    per_device_train_batch_size: int = flag(64, "images per process in one micro-batch")
    learning_rate: float = flag(1e-3, "peak learning rate")
    weight_decay: float = flag(0.05, "weight decay of matrices; biases and norms have none")
    warmup_steps: float = flag(0.05, "linear warm-up steps; below 1, a fraction of the run")


def main(args: IjepaArgs) -> None:
    start(args)
    source = pictures.find(args)
    encoder, processor = image_encoders.build(args, source.side, vit_tokens.initialise)
    train, held_out = source.decoded(processor, args)
    crop = views.made_for(processor, [views.View(scale=(args.smallest_crop, 1.0), jitter=0.0, grey=0.0)])
    predictor = args.predictor_width, args.predictor_layers, args.predictor_heads
    method = IJEPA(encoder, crop, *predictor, args.momentum, args.context_ratio)
    optimizer = optim.from_args(method, args)
    evaluation = Neighbours(held_out, processor, args.per_device_train_batch_size)
    data = pictures.described(train, held_out)
    pretrain(args, method, processor, train, [optimizer], evaluation, **data)


if __name__ == "__main__":
    command(main, IjepaArgs, __doc__)
