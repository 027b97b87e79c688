"""Masked autoencoder (MAE): trains on unlabelled images, leaves a ViTModel.

accelerate launch recipes/mae.py                                   # scikit-learn's digits, built in
accelerate launch recipes/mae.py --dataset my_folder --image_size 64 --patch_size 8 --size tiny --augmentation crop_flip
accelerate launch recipes/mae.py --model_name_or_path facebook/vit-mae-base --dataset my_folder   # continue

Pretrained on 20,000 images of CIFAR-10 (--image_size 32 --patch_size 4 --augmentation crop_flip --num_train_epochs 40;
half an hour on one core of a Xeon, fp32) and on 10,000 of Fashion-MNIST (--image_size 28 --patch_size 4 --augmentation
none --norm_pix_loss False --num_train_epochs 80; 25 minutes). Then recipes/transfer.py --labels 1% 10% 100% on 4,000
other images, accuracy in per cent, mean and deviation over three seeds. In fine-tuning, untrained is from scratch and
raw pixels are the linear probe:

                                                       MAE     untrained    raw pixels   chance
    CIFAR-10, --mode linear                1%   34.1 ± 0.9    23.5 ± 2.1    27.4 ± 1.4     10.0
                                          10%   47.8 ± 0.1    35.4 ± 0.2    35.8 ± 0.3
                                         100%         53.3          42.4          41.0
    CIFAR-10, --mode finetune              1%   39.2 ± 2.0    25.6 ± 1.7    27.4 ± 1.4
      --augmentation crop_flip            10%   49.6 ± 0.8    26.9 ± 1.5    35.8 ± 0.3
      --batch_size 32 --max_steps 300     100%   51.0 ± 0.2    25.9 ± 0.6          41.0
    Fashion-MNIST, --mode linear           1%   69.4 ± 4.9    39.4 ± 2.4    64.6 ± 3.8      9.9
                                          10%   81.1 ± 0.4    66.1 ± 1.4    80.0 ± 0.9
                                         100%         84.6          75.3          84.0

On Fashion-MNIST, where all clothes have the same pose, crops, flips and standardised targets lowered the results.
recipes/README.md has these experiments, --decode_ratio, and more results on Fashion-MNIST.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.arguments import TrainArgs, command, flag, layers_by_width
from mmssl.data.images import decoding, pictures, views
from mmssl.evaluation.reconstruction import Reconstruction
from mmssl.methods import mae
from mmssl.pretrain import pretrain, start
from mmssl.training import optim

AUGMENTATIONS = {"crop_flip": views.CROP_FLIP, "crop": views.CROP, "none": views.WHOLE}


@dataclass
class MaeArgs(pictures.PictureArgs, TrainArgs):
    output_dir: str = flag("runs/mae", "where the encoder, log, figures and checkpoints go")
    model_name_or_path: str | None = flag(None, "continue from this MAE: an earlier run, a directory or a Hub id")
    size: str = flag(
        "micro",
        "size of encoder and decoder; the encoder's layers x width: "
        + layers_by_width({name: (of.layers, of.width) for name, of in mae.SIZES.items()}),
        mae.SIZES, of_new_model=True,
    )  # fmt: skip
    image_size: int | None = flag(
        None, "side in pixels; default: that of the data, at most 224", at_least=2, at_most=2048, of_new_model=True
    )
    patch_size: int | None = flag(
        None, "side in pixels; default: an eighth of the image", at_least=1, at_most=2048, of_new_model=True
    )
    mask_ratio: float = flag(0.75, "fraction of the patches that are masked", above=0, below=1)
    decode_ratio: float = flag(1.0, "fraction of the masked patches that are decoded", above=0, at_most=1)
    norm_pix_loss: bool = flag(True, "standardise each target patch", of_new_model=True)
    augmentation: str = flag("crop", "random resized crops of training images, with or without flips", AUGMENTATIONS)

    num_train_epochs: float = flag(200, "passes over the data; MAE needs many")
    learning_rate: float = flag(1e-3, "peak learning rate; for base and larger, 1.5e-4 * batch / 256")
    weight_decay: float = flag(0.05, "weight decay of matrices; biases and norms have none")
    adam_beta2: float = flag(0.95, "AdamW's beta2")
    warmup_steps: float = flag(0.05, "linear warm-up steps; below 1, a fraction of the run")


def main(args: MaeArgs) -> None:
    start(args)
    source = pictures.find(args)
    model, processor = mae.build(args, source.side)
    train, held_out = source.decoded(processor, args)
    view = views.sized(AUGMENTATIONS[args.augmentation], processor)
    method = mae.MAE(model, views.Views([view], *decoding.normalisation(processor)), args.decode_ratio)
    optimizer = optim.from_args(method, args)
    evaluation = Reconstruction(train, held_out)
    data = pictures.described(train, held_out)
    pretrain(args, method, processor, train, [optimizer], evaluation, **data)


if __name__ == "__main__":
    command(main, MaeArgs, __doc__)
