"""Frame order: trains on unlabelled video to tell whether frames are in order, leaves an image encoder of frames.

accelerate launch recipes/frame_order.py                                     # moving digits, built in
accelerate launch recipes/frame_order.py --dataset my_folder --fps 10 --motion 2
accelerate launch recipes/frame_order.py --dataset my_folder --kind arrow --motion 2      # which way time runs

Moving digits, 150 steps (--max_steps 150 --held_out 256), two minutes of one core of an EPYC (Zen 4) in bf16, seed 0:
83.6 % of the tuples of 256 clips of held-out digits are judged right, chance 50. Without the differences of each pair
of frames, and with frames nearer to each other, 140 steps did not get above chance.

Which digit moves, 1,000 clips of held-out digits (recipes/transfer.py --dataset moving_digits --max_samples 1500
--labels 100% --seeds 1 --layers all), after 1,000 steps (five minutes of one core; 91.0 % of the tuples right), per
cent, a standard error being 0.7 to 1.6:

                            stem   stage 1   stage 2   stage 3   raw pixels   chance
    linear, trained         93.8      95.7      94.4      78.0         21.6     10.7
    linear, untrained       95.4      94.8      92.4      84.8
    k-NN, trained           69.6      60.9      29.9      18.5         25.2
    k-NN, untrained         82.9      82.4      68.5      37.6

The order of such frames shows where things are, not which they are: at best the middle stages gain, and what is
exported as the last stage loses. Crops of 60 % of a frame (--smallest_crop 0.6), which make positions less reliable, do
not help (linear 94.5, 94.0, 93.9, 77.3), nor do fewer steps (150: linear 78.2 of 600 clips, untrained 77.5; k-NN 14.7,
31.3) or two layers more between encoder and classifier (93.8, 94.2, 93.0, 75.4). Nor does moving each frame by up to a
tenth of its side, round its borders (93.1, 93.8, 94.3, 75.9; by three tenths, the order is not learned), so that only
the digits' distances tell the order. With 2,000 training clips and another machine (a Xeon with AMX) the trained stages
are 94.4, 93.8, 92.5 and 80.2, the untrained ones 96.3, 95.0, 94.3 and 85.8: the gain of the middle stages is within the
error. Fine-tuned on 10 % of the labels (--mode finetune --labels 10% --seeds 2 --max_steps 120) it is far below an
untrained encoder: 45.0 ± 2.3, 93.7 ± 1.1. With the last stage in the classifier and two stages exported, 1,000 steps,
those are within the error of an untrained one under the linear probe (93.2, 92.2) and far below it in k-NN (35.7,
62.8).

39 real clips of 96 x 72 pixels, of which the first 66 % are trained on (--max_steps 300 --motion 1 --frames 8
--beginning 0.66), then recipes/transfer.py --label_column which_video --labels 100%, 122 clips of the last third, per
cent: k-NN 82.8, untrained 86.9, raw pixels 82.8; linear 78.7, 82.8, 78.7; chance 20.5.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.arguments import TrainArgs, command, flag
from mmssl.data.images import views
from mmssl.data.video import clips
from mmssl.evaluation.strips import Strips
from mmssl.methods import frame_order
from mmssl.models import image_encoders
from mmssl.pretrain import pretrain, start
from mmssl.training import optim

SHOWN = (
    "Frames of held-out clips, and below them as the network gets them. A white square at the end: in order, or "
    "forwards; above the truth, below the prediction."
)


@dataclass
class FrameOrderArgs(image_encoders.EncoderArgs, clips.ClipArgs, TrainArgs):
    output_dir: str = flag("runs/frame_order", "where the encoder, log, figures and checkpoints go")
    kind: str = flag("shuffle", "in order or not, or which way time runs", frame_order.KINDS)
    encoder: str = flag(
        "resnet-nano", image_encoders.described(image_encoders.NAMES), image_encoders.NAMES, of_new_model=True
    )
    smallest_crop: float = flag(0.95, "smallest fraction of a frame's area in its view", above=0, at_most=1)
    light: float = flag(0.2, "largest change of a frame's brightness and contrast", at_least=0, at_most=1)
    noise: float = flag(0.1, "deviation of the noise of a frame, in normalised pixels", at_least=0, at_most=10)
    hidden_dim: int = flag(128, "width of the classifier", at_least=1, at_most=16384)

    frames: int = flag(20, "frames in a clip, of which three are seen")
    num_train_epochs: float = flag(3, "passes over the data")
    per_device_train_batch_size: int = flag(32, "clips per process")
    learning_rate: float = flag(1e-3, "peak learning rate")
    weight_decay: float = flag(1e-3, "weight decay of matrices; biases and norms have none")
    warmup_steps: float = flag(0.05, "linear warm-up steps; below 1, a fraction of the run")

    def __post_init__(self) -> None:
        super().__post_init__()
        frame_order.check_time(self.frames, self.kind)


def main(args: FrameOrderArgs) -> None:
    start(args)
    source = clips.find(args)
    encoder, processor = image_encoders.build(args, source.side)
    train, held_out = source.decoded(processor)
    view = views.View(
        scale=(args.smallest_crop, 1.0), flip=0.0, jitter=1.0, brightness=args.light, contrast=args.light,
        saturation=0.0, hue=0.0, grey=0.0,
    )  # fmt: skip
    made = views.made_for(processor, [view])
    method = frame_order.FrameOrder(encoder, made, args.kind, args.noise, args.hidden_dim)
    evaluation = Strips(held_out, args.per_device_train_batch_size, SHOWN, {"accuracy": 0.5})
    data = clips.described_frames(train, held_out)
    optimizers = [optim.from_args(method, args)]
    pretrain(args, method, processor, train, optimizers, evaluation, **data)


if __name__ == "__main__":
    command(main, FrameOrderArgs, __doc__)
