"""CPC on images: trains on unlabelled images, leaves an encoder of an image's patches (a model of ours with its file).

accelerate launch recipes/cpc_image.py                                    # scikit-learn's digits, built in
accelerate launch recipes/cpc_image.py --dataset my_folder --encoder resnet18 --image_size 96 --crop_size 24
accelerate launch recipes/cpc_image.py --dataset my_folder --encoder bit-micro       # group norms, no batch norms

20,000 images of CIFAR-10 (--dataset cifar10), the defaults, seed 0, 18 minutes of one core of an EPYC (Zen 5) in bf16;
then recipes/transfer.py --mode knn linear --labels 100%, per cent of 4,000 test images: linear 54.4, k-NN 43.1. Before
training 47.3, 34.7; raw pixels 41.0, 33.9. Those are means over an image's patches; applied to whole images, whose maps
are wider than any that it was trained on, the same network (kernels that patches never reach set to zero) reaches 43.7
and 36.8, before training 42.8 and 40.1. A mean loses positions: on the digits, 345 steps, k-NN 85.9, before training
74.7, raw pixels 97.0.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.arguments import TrainArgs, command, flag
from mmssl.data.images import pictures, views
from mmssl.evaluation.neighbours import Neighbours
from mmssl.methods.cpc_image import NEAREST, CPCImage
from mmssl.models import image_encoders, on_patches
from mmssl.pretrain import pretrain, start
from mmssl.training import optim


@dataclass
class CpcImageArgs(image_encoders.EncoderArgs, pictures.PictureArgs, TrainArgs):
    output_dir: str = flag("runs/cpc_image", "where the encoder, log, figures and checkpoints go")
    crop_size: int = flag(8, "side in pixels of the patches that the encoder sees; they overlap by half", at_least=2)
    prediction_steps: int = flag(4, "rows below that are predicted, from the second on", at_least=NEAREST, at_most=64)
    prediction_dim: int = flag(64, "dimension of the predictions", at_least=1, at_most=16384)
    context_size: int = flag(64, "channels of the context network; 256 in the paper", at_least=1, at_most=16384)
    context_layers: int = flag(2, "blocks of the context network; 5 in the paper", at_least=1, at_most=64)
    smallest_crop: float = flag(0.2, "smallest fraction of an image's area in a view", above=0, at_most=1)

    num_train_epochs: float = flag(15, "passes over the data")
    per_device_train_batch_size: int = flag(64, "images per process in one micro-batch")
    learning_rate: float = flag(2e-3, "peak learning rate")
    weight_decay: float = flag(1e-4, "weight decay of matrices; biases and norms have none")
    warmup_steps: float = flag(0.05, "linear warm-up steps; below 1, a fraction of the run")


def main(args: CpcImageArgs) -> None:
    start(args)
    source = pictures.find(args)
    encoder, processor = image_encoders.build(args, source.side)
    encoder = on_patches.patchwise(encoder, args.crop_size)
    train, held_out = source.decoded(processor, args)
    view = views.made_for(processor, [views.simclr(source.side, (args.smallest_crop, 1.0))])
    task = args.prediction_steps, args.prediction_dim
    method = CPCImage(encoder, view, *task, args.context_size, args.context_layers)
    optimizer = optim.from_args(method, args)
    evaluation = Neighbours(held_out, processor, args.per_device_train_batch_size)
    data = pictures.described(train, held_out)
    pretrain(args, method, processor, train, [optimizer], evaluation, **data)


if __name__ == "__main__":
    command(main, CpcImageArgs, __doc__)
