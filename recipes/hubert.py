"""HuBERT: trains on unlabelled recordings by predicting clusters of masked frames, leaves a HubertModel.

accelerate launch recipes/hubert.py                                     # synthetic voices, built in
accelerate launch recipes/hubert.py --dataset my_folder --output_dir runs/speech        # WAV, FLAC, OGG, MP3
accelerate launch recipes/hubert.py --dataset my_folder --model_name_or_path runs/speech --clusters 500   # once more

Free Spoken Digit Dataset, 2,700 recordings of six speakers, seven minutes of one core of an EPYC (Zen 4) in bf16, seed
0 (--dataset spoken_digits --max_steps 1260); digits of two speakers whose labels the probe has not seen
(recipes/transfer.py --label_column digit --hold_out speaker=jackson,theo --labels 100% --seeds 1), in per cent:

                        jackson, theo   nicolas, yweweler   george, lucas   mean
    linear, trained              81.0                70.1            41.9   64.3
    linear, untrained            43.0                44.9            35.3   41.1
    linear, log-mel              64.3                57.6            61.1   61.0
    k-NN, trained                74.7                61.4            32.7   56.3
    k-NN, log-mel                52.7                42.9            38.1   44.6
"""

from __future__ import annotations

from dataclasses import dataclass

from mmssl.arguments import TrainArgs, command, flag
from mmssl.evaluation.masked_frames import MaskedFrames
from mmssl.methods.hubert import Hubert
from mmssl.models import speech_encoders
from mmssl.pretrain import pretrain, start
from mmssl.training import optim


@dataclass
class HubertArgs(speech_encoders.SpeechArgs, TrainArgs):
    output_dir: str = flag("runs/hubert", "where the encoder, log, figures and checkpoints go")
    clusters: int = flag(100, "number of clusters; the paper: 100, then 500", at_least=2, at_most=10**5)
    cluster_layer: int = flag(2, "cluster the features after so many layers", at_least=1, at_most=200)
    cluster_every: int = flag(10, "epochs between two clusterings, the first of them of MFCC", at_least=1)
    mask_probability: float = flag(0.08, "probability that a frame begins a masked span", above=0, below=1)
    mask_span: int = flag(10, "frames of a masked span", at_least=1, at_most=1000)

    num_train_epochs: float = flag(30, "passes over the data")
    per_device_train_batch_size: int = flag(32, "recordings per process")
    weight_decay: float = flag(0.01, "weight decay of matrices; biases and norms have none")
    warmup_steps: float = flag(0.1, "linear warm-up steps; below 1, a fraction of the run")


def main(args: HubertArgs) -> None:
    start(args)
    model, extractor = speech_encoders.build(args, "Hubert")
    training, held_out = speech_encoders.recordings_of(args, model, extractor, args.mask_span + 1)
    acoustic = args.model_name_or_path is None
    clustering = args.clusters, args.cluster_layer, args.cluster_every, acoustic
    method = Hubert(model, training, *clustering, args.mask_probability, args.mask_span)
    optimizer = optim.from_args(method, args)
    data = speech_encoders.described(training, held_out)
    evaluation = MaskedFrames(held_out, args.per_device_train_batch_size)
    pretrain(args, method, extractor, training, [optimizer], evaluation, **data)


if __name__ == "__main__":
    command(main, HubertArgs, __doc__)
