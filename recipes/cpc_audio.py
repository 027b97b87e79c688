"""Contrastive predictive coding on audio: trains on unlabelled recordings, leaves an audio encoder.

accelerate launch recipes/cpc_audio.py                                  # synthetic voices, built in
accelerate launch recipes/cpc_audio.py --dataset my_folder --output_dir runs/speech     # WAV, FLAC, OGG, MP3
accelerate launch recipes/cpc_audio.py --dataset my_folder --output_dir runs/paper --sampling_rate 16000 \
    --hidden_size 512 --context_size 256 --conv_kernel 10 8 4 4 4 --conv_stride 5 4 2 2 2 --crop_seconds 1.28 \
    --per_device_train_batch_size 8 --learning_rate 2e-4                # the paper's sizes, section 3.1

Free Spoken Digit Dataset (data_scripts/spoken_digits.py), 2,700 recordings of six speakers, eight minutes on one core
(Xeon, fp32):

    accelerate launch recipes/cpc_audio.py --dataset spoken_digits --negatives speaker --speaker_column speaker \
        --per_device_train_batch_size 64
    python recipes/transfer.py --model_name_or_path runs/cpc_audio --dataset spoken_digits --label_column digit \
        --hold_out speaker=george,lucas --mode linear --labels 100% --seeds 1

Linear probe, accuracy in per cent. A row names the speakers whose digits are tested (--hold_out); the probe is trained
on the other four. Who speaks: --label_column speaker, without --hold_out. Pretraining used all six, without labels:

    seed                                 0      1      2    log-mel   untrained   chance
    digits of george, lucas           75.4   76.4   70.6       61.1        34.1     10.0
    digits of jackson, theo           81.7   82.7   80.4       64.3        41.2     10.0
    digits of nicolas, yweweler       79.1   76.7   76.6       57.6        35.0     10.0
    who speaks, the given split       97.0   98.0   98.3       99.0        86.7     16.7

Negatives, one short run each, k-NN on digits of unseen speakers: same speaker 50, within the recording 41, across the
batch 25 (untrained 32). Across the batch, the model learns to distinguish speakers, which is easier.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from mmssl.arguments import command, flag
from mmssl.data import sources
from mmssl.data.audio import recordings
from mmssl.distributed import world_size
from mmssl.errors import BadInput
from mmssl.evaluation import heard
from mmssl.evaluation.held_out import Columns
from mmssl.evaluation.prediction import Prediction
from mmssl.methods import cpc
from mmssl.pretrain import pretrain, start
from mmssl.training import optim


@dataclass
class CpcAudioArgs(cpc.CpcArgs):
    output_dir: str = flag("runs/cpc_audio", "where the encoder, log, figures and checkpoints go")
    dataset: str = flag("voices", "voices (built in, synthetic), a folder, Parquet, a Hub id; several with commas")
    audio_column: str | None = flag(None, "column of recordings; default: the first column with a usual name")
    speaker_column: str | None = flag(None, "column of speakers, for --negatives speaker")
    held_out: int = flag(1000, "recordings held out if the data has no test split (at most 10 %)", at_least=1)
    negatives: str = flag(
        "within",
        "negatives: other frames of the recording (within); the same frame of the batch's other recordings (across), "
        "or only of those by the same speaker (speaker); all frames of the batch (all)",
        cpc.NEGATIVES,
    )
    prediction_steps: int = flag(12, "largest number of frames to predict ahead", at_least=1, at_most=1000)
    sampling_rate: int = flag(
        8000, "sampling rate in Hz; other recordings are resampled", at_least=100, at_most=768_000, of_new_model=True
    )
    crop_seconds: float = flag(0.64, "seconds of a recording in a batch, at most", above=0, at_most=3600)
    hidden_size: int = flag(
        128, "channels of the convolutions; the paper: 512", at_least=1, at_most=16384, of_new_model=True
    )
    context_size: int = flag(128, "width of the GRU; the paper: 256", at_least=1, at_most=16384, of_new_model=True)
    conv_kernel: list[int] = flag(
        [16, 8, 4], "kernel size of each convolution; the paper, at 16 kHz: 10 8 4 4 4", at_least=1, at_most=10**5,
        of_new_model=True,
    )  # fmt: skip
    conv_stride: list[int] = flag(
        [8, 5, 2], "strides; their product: samples per frame; the paper: 5 4 2 2 2", at_least=1, at_most=10**5,
        of_new_model=True,
    )  # fmt: skip

    num_train_epochs: float = flag(30, "passes over the data")
    per_device_train_batch_size: int = flag(32, "recordings per process")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.conv_kernel) != len(self.conv_stride):
            raise BadInput(f"--conv_kernel has {len(self.conv_kernel)} layers, --conv_stride {len(self.conv_stride)}")
        if short := [k for k, s in zip(self.conv_kernel, self.conv_stride, strict=True) if s > k]:
            raise BadInput(f"--conv_kernel {short[0]} is shorter than its stride: samples would be skipped")
        if (self.negatives == "speaker") != bool(self.speaker_column):
            raise BadInput("--negatives speaker and --speaker_column must be given together")


def main(args: CpcAudioArgs) -> None:
    start(args)
    model, extractor = cpc.build_audio(args)
    config, rows = model.config, recordings.load(args.dataset, args.audio_column, args.speaker_column)
    crop = round(args.crop_seconds * config.frame_rate)
    if crop <= args.prediction_steps:
        raise BadInput(
            f"--crop_seconds {args.crop_seconds} is {crop} frames, which must be more than --prediction_steps "
            f"{args.prediction_steps}"
        )
    size = {
        "sampling_rate": config.sampling_rate,
        "crop": crop * config.hop,
        "shortest": (args.prediction_steps + 1) * config.hop,
        "speakers": args.speaker_column is not None,
    }
    train_rows, test_rows = sources.split(rows, args.held_out)
    training = recordings.Recordings(train_rows, **size, seed=args.seed)
    held_out = recordings.Recordings(test_rows, **size, what="held-out recordings")
    batch = args.per_device_train_batch_size * world_size()
    if args.negatives == "speaker" and (company := training.company(batch)) < 1:
        raise BadInput(
            f"--negatives speaker: a batch of {batch} has {company:.1f} others by the same speaker on average, too few "
            "for negatives; raise --per_device_train_batch_size, or use --negatives within"
        )

    method = cpc.CPC(model, args.prediction_steps, args.negatives, unit="recordings")
    speakers = "the speaker decided only which recordings are compared" if args.speaker_column else "no labels"
    examples = held_out.__getitems__([0, len(held_out) - 1])["input_values"]
    optimizer = optim.from_args(method, args)
    evaluation = Heard(held_out, f"frames ahead, of {1000 / config.frame_rate:.0f} ms", args.negatives)
    pretrain(
        args, method, extractor, training, [optimizer], evaluation,
        trained_on=f"{len(training.rows):,} recordings, {training.seconds / 60:.1f} minutes, {speakers}",
        held_out=f"{len(held_out):,} recordings",
        example={"raw_speech": examples, "sampling_rate": config.sampling_rate},
    )  # fmt: skip


class Heard(Prediction):
    """Also draws the encoder's features of held-out recordings."""

    @torch.no_grad()
    def draw(self, method: cpc.CPC, directory: Path, results: Columns) -> dict[str, str]:
        model, captions = method.model.cpu(), super().draw(method, directory, results)
        return captions | heard.draw(lambda wave: model(wave).last_hidden_state[0], self.held_out, directory)


if __name__ == "__main__":
    command(main, CpcAudioArgs, __doc__)
