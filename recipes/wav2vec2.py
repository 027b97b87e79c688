"""wav2vec 2.0: trains on unlabelled recordings by masking parts of them, leaves a Wav2Vec2Model.

accelerate launch recipes/wav2vec2.py                                   # synthetic voices, built in
accelerate launch recipes/wav2vec2.py --dataset my_folder --output_dir runs/speech      # WAV, FLAC, OGG, MP3
accelerate launch recipes/wav2vec2.py --dataset my_folder --sampling_rate 16000 --width 768 --layers 12 \
    --conv_width 512 --conv_kernel 10 3 3 3 3 2 2 --conv_stride 5 2 2 2 2 2 2 --crop_seconds 15.6 --entries 320 \
    --codebook_dim 256 --per_device_train_batch_size 8 --learning_rate 5e-4     # the base model's sizes, section 4.2

Free Spoken Digit Dataset, 2,700 recordings of six speakers, seven minutes of one core of an EPYC (Zen 4) in bf16, seed
0 (--dataset spoken_digits --max_steps 1370): of the masked frames of held-out recordings, 37.4 % are told from the
others of their recording, chance 8.3 %, untrained 7.7 %; 27 of 64 codes are in use. Digits of two speakers whose labels
the probe has not seen (recipes/transfer.py --label_column digit --hold_out speaker=jackson,theo --labels 100% --seeds
1), in per cent:

                        jackson, theo   nicolas, yweweler   george, lucas   mean
    linear, trained              59.9                64.7            51.7   58.8
    linear, untrained            44.2                45.6            35.0   41.6
    linear, log-mel              64.3                57.6            61.1   61.0
    k-NN, trained                34.3                35.1            27.1   32.2
    k-NN, untrained              29.7                31.2            16.7   25.9

In the same time, recipes/hubert.py reaches 64.3 with the linear probe.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.arguments import TrainArgs, command, flag
from mmssl.evaluation.masked_frames import MaskedFrames
from mmssl.methods.wav2vec2 import Wav2Vec2
from mmssl.models import speech_encoders
from mmssl.models.speech_encoders import SpeechArgs
from mmssl.pretrain import pretrain, start
from mmssl.training import optim


@dataclass
class Wav2Vec2Args(SpeechArgs, TrainArgs):
    output_dir: str = flag("runs/wav2vec2", "where the encoder, log, figures and checkpoints go")
    mask_probability: float = flag(0.065, "probability that a frame begins a masked span", above=0, below=1)
    mask_span: int = flag(10, "frames of a masked span", at_least=2, at_most=1000)
    codebooks: int = flag(2, "number of codebooks", at_least=1, at_most=16)
    entries: int = flag(64, "entries of each codebook; the base model: 320", at_least=2, at_most=10**5)
    codebook_dim: int = flag(128, "dimensions that targets are compared in; the base model: 256", at_least=1,
                             at_most=16384)  # fmt: skip

    num_train_epochs: float = flag(30, "passes over the data")
    per_device_train_batch_size: int = flag(32, "recordings per process")
    weight_decay: float = flag(0.01, "weight decay of matrices; biases and norms have none")
    warmup_steps: float = flag(0.1, "linear warm-up steps; below 1, a fraction of the run")


def main(args: Wav2Vec2Args) -> None:
    start(args)
    model, extractor = speech_encoders.build(args, "Wav2Vec2")
    training, held_out = speech_encoders.recordings_of(args, model, extractor, shortest=args.mask_span + 1)
    method = Wav2Vec2(
        model, args.mask_probability, args.mask_span, args.codebooks, args.entries, args.codebook_dim
    )  # fmt: skip
    evaluation = MaskedFrames(held_out, args.per_device_train_batch_size)
    optimizer = optim.from_args(method, args)
    data = speech_encoders.described(training, held_out)
    pretrain(args, method, extractor, training, [optimizer], evaluation, **data)


if __name__ == "__main__":
    command(main, Wav2Vec2Args, __doc__)
