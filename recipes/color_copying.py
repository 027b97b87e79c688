"""Colour by pointing: trains on unlabelled coloured video, leaves an image encoder whose features track what they see.

accelerate launch recipes/color_copying.py                                   # coloured moving digits, built in
accelerate launch recipes/color_copying.py --dataset my_folder --fps 6 --motion 1

Coloured moving digits, 70 steps (--max_steps 70 --held_out 32), one minute of one core of an EPYC (Zen 4) in bf16, seed
0. Masks of the digits of 32 held-out clips, carried on from the first frame to the next eleven, intersection over union
in per cent: trained 46.6, untrained 11.3, the first mask copied 9.7. Of the positions that are not black, 67 % get the
right one of 16 colours. Errors are those of small digits: a position is 4 x 4 pixels.

39 real clips of 96 x 72 pixels, of which the first 66 % are trained on (--max_steps 120 --motion 1 --frames 8
--beginning 0.66), then recipes/transfer.py --label_column which_video --labels 100%, 122 clips of the last third, per
cent: k-NN 87.7, untrained 86.9, raw pixels 82.8; linear 85.2, 82.8, 78.7; chance 20.5. A standard error is 3.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.arguments import TrainArgs, command, flag
from mmssl.data.images import views
from mmssl.data.video import clips
from mmssl.evaluation.propagation import Propagation
from mmssl.methods import color_copying
from mmssl.models import image_encoders
from mmssl.pretrain import pretrain, start
from mmssl.training import optim

SHOWN = "Held-out clips, and their grey form with the colours of the first frame, carried on from frame to frame."


@dataclass
class ColorCopyingArgs(image_encoders.EncoderArgs, clips.ClipArgs, TrainArgs):
    output_dir: str = flag("runs/color_copying", "where the encoder, log, figures and checkpoints go")
    dataset: str = flag("moving_colours", "moving_colours (built in), a folder, a Parquet file, or a Hub id")
    references: int = flag(3, "frames that colours are copied from", at_least=1, at_most=16)
    frames: int = flag(12, "frames in a clip, of which four are used")
    position_dim: int = flag(64, "size of the embedding of a position", at_least=1, at_most=4096)
    temperature: float = flag(0.1, "of the softmax over positions", above=0, at_most=100)
    flip: float = flag(0.0, "probability of a horizontal flip; 0 for digits and letters", at_least=0, at_most=1)

    num_train_epochs: float = flag(2, "passes over the data")
    per_device_train_batch_size: int = flag(16, "clips per process")
    learning_rate: float = flag(1e-3, "peak learning rate")
    weight_decay: float = flag(1e-3, "weight decay of matrices; biases and norms have none")
    warmup_steps: float = flag(0.05, "linear warm-up steps; below 1, a fraction of the run")

    def __post_init__(self) -> None:
        super().__post_init__()
        color_copying.check_time(self.frames, self.references)


def main(args: ColorCopyingArgs) -> None:
    start(args)
    source = clips.find(args)
    encoder, processor = image_encoders.build(args, source.side)
    train, held_out = source.decoded(processor)
    made = views.made_for(processor, [views.whole(args.flip)])
    centres = color_copying.cluster_colours(train, made, args.seed)
    sizes = args.references, args.position_dim, args.temperature
    method = color_copying.ColorCopying(encoder, made, centres, *sizes)
    evaluation = Propagation(held_out, args.per_device_train_batch_size, SHOWN)
    data, optimizer = clips.described_frames(train, held_out), optim.from_args(method, args)
    pretrain(args, method, processor, train, [optimizer], evaluation, **data)


if __name__ == "__main__":
    command(main, ColorCopyingArgs, __doc__)
