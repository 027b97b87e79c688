"""DDPM: trains on unlabelled images, leaves a diffusers DDPMPipeline that draws images, and an image encoder.

accelerate launch recipes/ddpm.py                                             # scikit-learn's digits, built in
accelerate launch recipes/ddpm.py --dataset my_folder --size cifar --image_size 32 --flip 0.5     # on a GPU
accelerate launch recipes/ddpm.py --model_name_or_path runs/ddpm --dataset my_folder               # continue

The first command sees 300,000 digits in under six minutes of one core of an EPYC (Zen 5) in bf16, seed 0. Of 256 drawn
images beside as many held-out ones (before training; real training images): Frechet distance .16 (2.7; .11), classes
covered 10 of 10 (8; 10), confidence of a classifier of real digits of 8 pixels 81.5 % (5.0; 90.2). k-NN on the features
95.7, before training 91.4, on pixels 97.4. Held-out loss .204, predicting 0: .799.

Short runs on 4,160 digits of MNIST (--dataset mnist5k), 28 pixels, one core, at commit 28e9807 (the first earlier),
where the sampler did not start at the last noise level yet; real images have .27 and 81.0 %:

                                                        minutes   Frechet distance   confidence   classes covered
    --max_steps 910 --prediction noise                        9               4.41         17.8                 5
    --max_steps 600                                           7                .90         27.8                10
    --max_steps 600 --schedule cosine                         7                .71         24.7                10
    --max_steps 1200 --per_device_train_batch_size 32
    --momentum 0.998                                          9                .64         33.4                10

With the noise as the target the ground is grey after so few steps. Most of the images are strokes still, not digits.
At 16 pixels (--image_size 16 --max_steps 3000 --per_device_train_batch_size 32 --momentum 0.998, 11 minutes of one core
of a Xeon beside other work), Frechet distance .21 (real images .12), confidence 58.4 % (80.0), 10 classes of 10; 38.7 %
of the images are taken for none (4.3; of noise 100), and the confidence among the ten digits is 90.2 % (93.2).
"""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.arguments import TrainArgs, command, flag
from mmssl.data.images import pictures, views
from mmssl.evaluation.generated import Generated, GeneratedArgs
from mmssl.evaluation.neighbours import Neighbours
from mmssl.methods import ddpm
from mmssl.pretrain import pretrain, start
from mmssl.training import optim

SHOWN = "Images drawn from the same noise in every run: six stages of one in each row, then five others."


@dataclass
class DdpmArgs(GeneratedArgs, pictures.PictureArgs, TrainArgs):
    output_dir: str = flag("runs/ddpm", "where the pipeline, encoder, log, figures and checkpoints go")
    model_name_or_path: str | None = flag(None, "continue from this DDPMPipeline: an earlier run or a Hub id")
    size: str = flag(
        "micro",
        "size of a new U-Net, channels of its levels: "
        + ", ".join(f"{name} {'-'.join(map(str, channels))}" for name, (channels, *_) in ddpm.SIZES.items()),
        ddpm.SIZES, of_new_model=True,
    )  # fmt: skip
    image_size: int | None = flag(
        None, "side in pixels; default: that of the data, at most 224", at_least=8, at_most=2048, of_new_model=True
    )
    schedule: str = flag("linear", "of the noise levels", ddpm.SCHEDULES, of_new_model=True)
    prediction: str = flag("velocity", "what the U-Net predicts; the paper: noise", ddpm.PREDICTIONS, of_new_model=True)
    noise_levels: int = flag(
        1000, "number of noise levels, from the image to noise alone", at_least=2, at_most=10**5, of_new_model=True
    )
    momentum: float = flag(
        0.999, "momentum of the moving average of the weights, which is what is exported", at_least=0, at_most=1
    )
    feature_step: int = flag(
        100, "noise level of the images that the encoder sees, below --noise_levels; 0: the least noise", at_least=0
    )
    flip: float = flag(0.0, "probability of a horizontal flip; 0 for digits and letters", at_least=0, at_most=1)

    per_device_train_batch_size: int = flag(64, "images per process in one micro-batch")
    num_train_epochs: float = flag(200, "passes over the data; 20,000 images of 32 pixels take a hundredth of that")
    learning_rate: float = flag(1e-3, "peak learning rate")
    warmup_steps: float = flag(0.02, "linear warm-up steps; below 1, a fraction of the run")


def main(args: DdpmArgs) -> None:
    start(args)
    source = pictures.find(args)
    unet, scheduler, processor = ddpm.build(args, source.side)
    train, held_out = source.decoded(processor, args)
    view = views.made_for(processor, [views.whole(args.flip)])
    method = ddpm.DDPM(unet, scheduler, view, args.momentum, args.feature_step)
    optimizer = optim.from_args(method.unet, args)
    own = Neighbours(held_out, processor, args.per_device_train_batch_size, task=SHOWN)
    evaluation = Generated(own, args, train, held_out, processor)
    data = pictures.described(train, held_out)
    pretrain(args, method, processor, train, [optimizer], evaluation, **data)


if __name__ == "__main__":
    command(main, DdpmArgs, __doc__)
