"""Tracking: trains on unlabelled video, patches and what becomes of them, leaves an image encoder of patches.

accelerate launch recipes/tracking.py                                   # moving digits, built in
accelerate launch recipes/tracking.py --dataset my_folder --fps 10 --motion 2 --encoder resnet18

Moving digits, 300 steps (--max_steps 300), four minutes of one core of an EPYC (Zen 4) in bf16, seed 0, on 192 held-out
clips: the last patch of a track is the nearest of 32 in 55.2 % of the clips, untrained 53.7 %, chance 3.1 %, a standard
error being 3.6; loss 0.12, untrained 0.46, all patches alike 0.50.

What made it worse than untrained before, 25 % against 41 % after 60 steps, found on 512 validation clips (a fifth of
the training digits): patches of half of the frame hold parts of two digits, which move apart, and their pixels alone
find 28 %; those of patches of 20 of 64 pixels find 61 %. With crops of 60 % of a patch 49.2 % after 300 steps, of 80 %
52.0, untrained 48.4; after 60 steps all are below it. With --hard_from 0.5, 56.4 on 1,600 clips that come again and
again, but on ever new clips the loss returns to the margin, all patches alike; so, too, from 0.3.

39 real clips of 96 x 72 pixels, of which the first 66 % are trained on (--max_steps 150 --motion 1 --frames 8
--beginning 0.66 --patch_side 36 --smallest_crop 0.6 --flip 0.5), then recipes/transfer.py --label_column which_video
--labels 100%, 122 clips of the last third, per cent: k-NN 88.5, untrained 86.9, raw pixels 82.8; linear 86.1, 82.8,
78.7; chance 20.5. Of five untrained encoders: k-NN 81.1 to 86.9, linear 82.0 to 84.4.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.arguments import TrainArgs, command, flag
from mmssl.data.images import decoding, views
from mmssl.data.video import clips
from mmssl.evaluation.strips import Strips
from mmssl.methods.tracking import MARGIN, Tracking
from mmssl.models import image_encoders
from mmssl.pretrain import pretrain, start
from mmssl.training import optim

SHOWN = "Held-out clips with the patch that is tracked, and the patch as the tracker has it in each frame."


@dataclass
class TrackingArgs(image_encoders.EncoderArgs, clips.ClipArgs, TrainArgs):
    output_dir: str = flag("runs/tracking", "where the encoder, log, figures and checkpoints go")
    frames: int = flag(8, "frames that a patch is tracked through")
    patch_side: int | None = flag(
        None, "side of a patch in pixels; default: a third of the frame", at_least=4, at_most=512
    )
    reach: int = flag(6, "farthest that a patch is looked for from frame to frame, in pixels", at_least=1, at_most=64)
    projection_dim: int = flag(64, "size of the embedding that is compared", at_least=1, at_most=16384)
    margin: float = flag(
        MARGIN,
        "how much farther, in cosine distance, random patches must be than a patch's own track",
        above=0,
        at_most=2,
    )
    hard_from: float = flag(
        1.0, "fraction of the run after which only the hardest random patches count", at_least=0, at_most=1
    )
    smallest_crop: float = flag(0.8, "smallest fraction of a patch's area in its view", above=0, at_most=1)
    flip: float = flag(0.0, "probability of a horizontal flip; 0 for digits and letters", at_least=0, at_most=1)

    num_train_epochs: float = flag(3, "passes over the data")
    per_device_train_batch_size: int = flag(32, "clips per process")
    learning_rate: float = flag(1e-3, "peak learning rate")
    weight_decay: float = flag(1e-3, "weight decay of matrices; biases and norms have none")
    warmup_steps: float = flag(0.05, "linear warm-up steps; below 1, a fraction of the run")


def main(args: TrackingArgs) -> None:
    start(args)
    source = clips.find(args)
    encoder, processor = image_encoders.build(args, source.side)
    train, held_out = source.decoded(processor)
    side = args.patch_side or min(decoding.shape(processor)) // 3
    scale = (args.smallest_crop, 1.0)
    view = views.View(
        max(image_encoders.SMALLEST, side), scale, flip=args.flip, brightness=0.2, contrast=0.2, saturation=0.2, hue=0.0
    )
    made = views.Views([view], *decoding.normalisation(processor))
    method = Tracking(encoder, made, side, args.reach, args.projection_dim, args.margin, args.hard_from)
    batch = args.per_device_train_batch_size
    evaluation = Strips(held_out, batch, SHOWN, {"found_in_batch": 1 / min(batch, len(held_out))})
    data, optimizer = clips.described_frames(train, held_out), optim.from_args(method, args)
    pretrain(args, method, processor, train, [optimizer], evaluation, **data)


if __name__ == "__main__":
    command(main, TrackingArgs, __doc__)
