"""Video LSTM: trains on unlabelled clips to predict the frames that follow, leaves an encoder of clips.

accelerate launch recipes/video_lstm.py                                    # moving digits, built in
accelerate launch recipes/video_lstm.py --dataset my_folder --fps 10       # MP4, WebM, AVI, GIF
accelerate launch recipes/video_lstm.py --dataset moving_mnist --cell full --hidden_size 2048 --conditional True

Ten frames are read, ten predicted. 360 steps (--max_steps 360 --held_out 64 --learning_rate 3e-3), 4.5 minutes of one
core of an EPYC (Zen 4) in bf16, seed 0; squared error of a predicted frame, summed over its pixels, on 64 clips of
held-out digits:

    trained 87.9    untrained 863    mean frame 121.8    mean of the frames read 159.8    last frame 217.7

The cross entropy is 560 nats a frame. The paper has 341 for its composite conditional model on Moving MNIST, after many
GPU hours and on other digits; digits here are blots after so short a run, in the right places for five frames. Of the
frames read, reconstructed in reverse order, the squared error is 35.9. Conditional decoders, full cells, several seeds
and longer runs were not tried.

39 real clips of 96 x 72 pixels, of which the first 66 % are trained on (--max_steps 150 --motion 1 --frames 8
--frames_read 4 --beginning 0.66), then recipes/transfer.py --label_column which_video --labels 100%, 264 clips of the
last third, per cent: k-NN 88.6, untrained 87.5, raw pixels 84.8; linear 79.9, 87.5, 79.2; chance 18.9.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.arguments import TrainArgs, command, flag
from mmssl.data.video import clips
from mmssl.errors import BadInput
from mmssl.evaluation.clip_prediction import ClipPrediction
from mmssl.methods import video_lstm
from mmssl.pretrain import pretrain, start
from mmssl.training import optim

SHOWN = "Held-out clips; below them, the frames that were read as reconstructed from the state, and the predicted ones."


@dataclass
class VideoLstmArgs(clips.ClipArgs, TrainArgs):
    output_dir: str = flag("runs/video_lstm", "where the encoder, log, figures and checkpoints go")
    model_name_or_path: str | None = flag(None, "continue from this model: an earlier run, a directory or a Hub id")
    trust_remote_code: bool = flag(False, "run the code that comes with model_name_or_path")
    kind: str = flag("composite", "what is learned: the future frames, the frames read, or both", video_lstm.KINDS)
    conditional: bool = flag(False, "a decoder also gets the frame that it wrote last")
    frames: int = flag(20, "frames in a clip: those read and those predicted")
    frames_read: int = flag(10, "frames of a clip that are read", at_least=1, at_most=1023)
    image_size: int | None = flag(
        None, "side in pixels; default: that of the data, at most 112", at_least=16, at_most=512, of_new_model=True
    )
    cell: str = flag("conv", "maps as states, or vectors as in the paper", ("conv", "full"), of_new_model=True)
    kernel_size: int = flag(3, "side of the kernels between maps", at_least=1, at_most=15, of_new_model=True)
    hidden_size: int = flag(64, "channels of a state", at_least=1, at_most=8192, of_new_model=True)
    layers: int = flag(1, "recurrent layers", at_least=1, at_most=16, of_new_model=True)

    num_train_epochs: float = flag(2, "passes over the data")
    per_device_train_batch_size: int = flag(16, "clips per process")
    learning_rate: float = flag(2e-3, "peak learning rate")
    warmup_steps: float = flag(0.05, "linear warm-up steps; below 1, a fraction of the run")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse(("gradient_checkpointing",), "a recurrent network")
        if self.frames_read >= self.frames:
            raise BadInput(f"--frames_read {self.frames_read} leaves none of --frames {self.frames} to predict")


def main(args: VideoLstmArgs) -> None:
    start(args)
    source = clips.find(args)
    model, processor = video_lstm.build(args, source.side)
    train, held_out = source.decoded(processor)
    written = args.frames - args.frames_read
    method = video_lstm.VideoLSTM(model, args.kind, args.frames_read, written, args.conditional)
    evaluation = ClipPrediction(train, held_out, args.per_device_train_batch_size, SHOWN)
    optimizers, data = [optim.from_args(method, args)], clips.described(train, held_out)
    pretrain(args, method, processor, train, optimizers, evaluation, **data)


if __name__ == "__main__":
    command(main, VideoLstmArgs, __doc__)
