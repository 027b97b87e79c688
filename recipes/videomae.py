"""VideoMAE: trains on unlabelled clips, nine tenths of them masked in tubes, leaves a VideoMAEModel.

accelerate launch recipes/videomae.py                                       # moving digits, built in
accelerate launch recipes/videomae.py --dataset my_folder --fps 10 --size tiny --augmentation crop_flip
accelerate launch recipes/videomae.py --dataset my_folder --model_name_or_path MCG-NJU/videomae-base    # continue

39 real clips of 96 x 72 pixels, of which the first 66 % are trained on (--max_steps 2500 --motion 1 --frames 8
--beginning 0.66 --augmentation crop_flip --per_device_train_batch_size 16), four minutes of one core of an EPYC (Zen 5)
in bf16, seed 0; then recipes/transfer.py --label_column which_video --labels 100%, 122 clips of the last third, per
cent: k-NN 85.2, untrained 83.6, raw pixels 82.8; linear 79.5, 78.7, 77.0; chance 20.5. A standard error is 3. After
1,100 steps 87.7, 78.7; after 300 steps 82.0, 75.4; with --norm_pix_loss False --mask_ratio 0.75, whole frames, 150
steps, 83.6, 73.8.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.arguments import TrainArgs, command, flag, layers_by_width
from mmssl.data.video import clips
from mmssl.evaluation.strips import Strips
from mmssl.methods import videomae
from mmssl.pretrain import pretrain, start
from mmssl.training import optim

SHOWN = "Held-out clips, the tubes of them that the encoder gets, and the reconstructions."


@dataclass
class VideoMaeArgs(clips.ClipArgs, TrainArgs):
    output_dir: str = flag("runs/videomae", "where the encoder, log, figures and checkpoints go")
    model_name_or_path: str | None = flag(None, "continue from this VideoMAE: an earlier run, a directory or a Hub id")
    size: str = flag(
        "micro",
        "size of encoder and decoder; the encoder's layers x width: "
        + layers_by_width({name: (of.layers, of.width) for name, of in videomae.SIZES.items()}),
        videomae.SIZES, of_new_model=True,
    )  # fmt: skip
    image_size: int | None = flag(
        None, "side in pixels; default: that of the data, at most 112", at_least=16, at_most=512, of_new_model=True
    )
    patch_size: int | None = flag(
        None, "side in pixels; default: an eighth of the frame", at_least=1, at_most=512, of_new_model=True
    )
    tubelet_size: int = flag(2, "frames of a token", at_least=1, at_most=64, of_new_model=True)
    mask_ratio: float = flag(0.9, "fraction of the tubes that are masked", above=0, below=1)
    norm_pix_loss: bool = flag(True, "standardise each target patch", of_new_model=True)
    augmentation: str = flag(
        "none", "one crop for all frames of a training clip, with or without flips", videomae.AUGMENTATIONS
    )

    num_train_epochs: float = flag(5, "passes over the data; VideoMAE needs many")
    per_device_train_batch_size: int = flag(32, "clips per process")
    learning_rate: float = flag(1e-3, "peak learning rate; for base and larger, 1.5e-4 * batch / 256")
    weight_decay: float = flag(0.05, "weight decay of matrices; biases and norms have none")
    adam_beta2: float = flag(0.95, "AdamW's beta2")
    warmup_steps: float = flag(0.05, "linear warm-up steps; below 1, a fraction of the run")


def main(args: VideoMaeArgs) -> None:
    start(args)
    source = clips.find(args)
    model, processor = videomae.build(args, source.side)
    train, held_out = source.decoded(processor)
    method = videomae.from_args(args, model, processor)
    evaluation = Strips(held_out, args.per_device_train_batch_size, SHOWN)
    data, optimizer = clips.described(train, held_out), optim.from_args(method, args)
    pretrain(args, method, processor, train, [optimizer], evaluation, **data)


if __name__ == "__main__":
    command(main, VideoMaeArgs, __doc__)
