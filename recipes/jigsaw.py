"""Jigsaw puzzles: trains on unlabelled images, leaves an encoder of an image's tiles (a model of ours with its file).

accelerate launch recipes/jigsaw.py                                      # scikit-learn's digits, built in
accelerate launch recipes/jigsaw.py --dataset my_folder --encoder resnet18 --image_size 96 --decode_size 128
accelerate launch recipes/jigsaw.py --dataset my_folder --permutations 1000 --hidden_dim 4096      # as in the paper

20,000 images of CIFAR-10 (--dataset cifar10), the defaults, seed 0, 11 minutes of one core of an EPYC (Zen 5) in bf16:
held out, accuracy 64.5, chance 1.6. Then recipes/transfer.py --mode knn linear, per cent of 4,000 test images with 1,
10 and 100 % of the labels: linear 33.5, 46.4, 53.3, k-NN 25.5, 34.8, 41.0. The same encoder of tiles before training
25.8, 38.0, 47.7 and 21.3, 28.9, 35.0; raw pixels, of images enlarged to 64, 27.4, 35.9, 41.7 and 21.6, 28.0, 35.6.

Those are means over an image's tiles; applied to whole images, the same network reaches only 47.7 and 35.9 with all
labels, before training 46.2 and 39.2. Standardised tiles, as in training, are no better. Tiles are seen at the scale of
whole images; with tiles of half an image's side, enlarged twice, features were worse.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.arguments import TrainArgs, command, flag
from mmssl.data.images import decoding, pictures, tiles, views
from mmssl.evaluation.neighbours import Neighbours
from mmssl.methods.jigsaw import GRID, Jigsaw
from mmssl.models import image_encoders, on_patches
from mmssl.pretrain import pretrain, start
from mmssl.training import optim

SMALLEST = 64  # px: tiles of 16
FIGURE = "Held-out images, their tiles as the network gets them, and the tiles in the order of its prediction."


@dataclass
class JigsawArgs(image_encoders.EncoderArgs, pictures.PictureArgs, TrainArgs):
    output_dir: str = flag("runs/jigsaw", "where the encoder, log, figures and checkpoints go")
    image_size: int | None = flag(None, "side in pixels; default: that of the data, from 64 to 224", of_new_model=True)
    tile_size: int | None = flag(
        None, "side of a tile in pixels; default: the largest of which the image has nine", at_least=2, at_most=1024
    )
    permutations: int = flag(64, "number of permutations to tell apart", at_least=2, at_most=1000)
    tile_dim: int = flag(128, "features of each tile that the classifier sees", at_least=1, at_most=16384)
    hidden_dim: int = flag(512, "width of the classifier", at_least=1, at_most=16384)
    smallest_crop: float = flag(0.4, "smallest fraction of an image's area in a view", above=0, at_most=1)
    flip: float = flag(0.5, "probability of a horizontal flip; 0 for digits and letters", at_least=0, at_most=1)

    num_train_epochs: float = flag(20, "passes over the data")
    learning_rate: float = flag(2e-3, "peak learning rate")
    weight_decay: float = flag(1e-3, "weight decay of matrices; biases and norms have none")
    warmup_steps: float = flag(0.05, "linear warm-up steps; below 1, a fraction of the run")


def main(args: JigsawArgs) -> None:
    start(args)
    source = pictures.find(args)
    encoder, processor = image_encoders.build(args, max(SMALLEST, source.side))
    train, held_out = source.decoded(processor, args)
    side = args.tile_size or tiles.fitting(min(decoding.shape(processor)), GRID)
    scale = (args.smallest_crop, 1.0)
    view = views.View(GRID * tiles.cell(side), scale, flip=args.flip, jitter=0.0, grey=0.0)
    view = views.Views([view], *decoding.normalisation(processor))
    encoder = on_patches.patchwise(encoder, side, "--tile_size")
    method = Jigsaw(encoder, view, args.permutations, args.tile_dim, args.hidden_dim)
    optimizer = optim.from_args(method, args)
    chance = {"accuracy": 1 / args.permutations}
    evaluation = Neighbours(held_out, processor, args.per_device_train_batch_size, task=FIGURE, chance=chance)
    data = pictures.described(train, held_out)
    pretrain(args, method, processor, train, [optimizer], evaluation, **data)


if __name__ == "__main__":
    command(main, JigsawArgs, __doc__)
