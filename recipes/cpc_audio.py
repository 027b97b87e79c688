"""Contrastive predictive coding on unlabelled recordings.

accelerate launch recipes/cpc_audio.py                                  # synthetic voices, built in
accelerate launch recipes/cpc_audio.py --dataset my_folder --output_dir runs/speech     # WAV, FLAC, OGG, MP3
accelerate launch recipes/cpc_audio.py --dataset my_folder --output_dir runs/paper --sampling_rate 16000 \
    --hidden_size 512 --context_size 256 --conv_kernel 10 8 4 4 4 --conv_stride 5 4 2 2 2 --crop_seconds 1.28 \
    --per_device_train_batch_size 8 --learning_rate 2e-4                # the paper's sizes, section 3.1

Free Spoken Digit Dataset (data_scripts/spoken_digits.py), 2,700 recordings of six speakers, eight minutes on one core:

    accelerate launch recipes/cpc_audio.py --dataset spoken_digits --negatives speaker --speaker_column speaker \
        --per_device_train_batch_size 64

then recipes/transfer.py --mode linear --labels 100% --seeds 1, per cent; the rows name the speakers whose digits are
tested, after training the probe on the other four (unlabelled, their recordings were in the pretraining):

    seed                                 0      1      2    log-mel   untrained   chance
    digits of jackson, theo           75.4   76.4   70.6       61.1        34.1     10.0
    digits of nicolas, yweweler       81.7   82.7   80.4       64.3        41.2     10.0
    digits of george, lucas           79.1   76.7   76.6       57.6        35.0     10.0
    who speaks, the given split       97.0   98.0   98.3       99.0        86.7     16.7

Tried, one short run each, k-NN on digits of unseen speakers: negatives of the same speaker 50, within the recording 41,
across the batch 25 (untrained 32): to tell speakers apart is the easier task, and it is learned instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import Wav2Vec2FeatureExtractor

from mmssl import figures
from mmssl.arguments import TrainArgs, command, flag
from mmssl.data import sources
from mmssl.data.audio.recordings import Recordings, load
from mmssl.data.built_in import voices
from mmssl.data.loader import Loader
from mmssl.distributed import world_size
from mmssl.errors import BadInput
from mmssl.evaluation import features
from mmssl.evaluation.downstream.probe import Probed
from mmssl.evaluation.prediction import Prediction
from mmssl.hub import export
from mmssl.methods import cpc
from mmssl.models.cpc_audio import CpcAudioConfig, CpcAudioModel
from mmssl.training.loop import Summary, start, train
from mmssl.training.optim import adamw


@dataclass
class CpcAudioArgs(TrainArgs):
    output_dir: str = flag("runs/cpc_audio", "where the encoder, log, figures and checkpoints go")
    dataset: str = flag("voices", "voices (built in, synthetic), a folder, Parquet, a Hub id; several with commas")
    audio_column: str | None = flag(None, "default: the first column with a usual name")
    speaker_column: str | None = flag(None, "who speaks, for --negatives speaker")
    held_out: int = flag(1000, "recordings kept for evaluation where the data has no test split (at most a tenth)")
    model_name_or_path: str | None = flag(None, "go on from this CPC: an earlier run, a directory or a Hub id")
    trust_remote_code: bool = flag(False, "run the code that comes with model_name_or_path")
    negatives: str = flag(
        "within",
        "candidates: moments within the recording, the same moment across the batch's or across those of the same "
        "speaker, or all of the batch",
        cpc.NEGATIVES,
    )
    prediction_steps: int = flag(12, "frames ahead, at most")
    sampling_rate: int = flag(8000, "Hz; recordings of another rate are resampled")
    crop_seconds: float = flag(0.64, "of a recording, at most, in a batch")
    hidden_size: int = flag(128, "channels of the convolutions; the paper: 512")
    context_size: int = flag(128, "of the GRU; the paper: 256")
    conv_kernel: list[int] = flag([16, 8, 4], "samples, then frames; the paper, at 16 kHz: 10 8 4 4 4")
    conv_stride: list[int] = flag([8, 5, 2], "their product is the samples between frames; the paper: 5 4 2 2 2")

    num_train_epochs: float = flag(30, "passes over the data")
    per_device_train_batch_size: int = flag(32, "recordings per process")
    learning_rate: float = flag(2e-3, "peak learning rate")
    weight_decay: float = flag(0.01, "on matrices only")
    warmup_steps: float = flag(0.05, "steps of linear warm-up; below 1, a share of the run")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse(("gradient_checkpointing",), "a recurrent network")
        for name in ("held_out", "prediction_steps", "sampling_rate", "hidden_size", "context_size"):
            if getattr(self, name) < 1:
                raise BadInput(f"--{name} is {getattr(self, name)}; it must be 1 or more")
        if self.model_name_or_path:
            of_its_own = "a checkpoint to start from: it has sizes of its own"
            self.refuse(("sampling_rate", "hidden_size", "context_size", "conv_kernel", "conv_stride"), of_its_own)
        if len(self.conv_kernel) != len(self.conv_stride):
            raise BadInput(f"--conv_kernel has {len(self.conv_kernel)} layers, --conv_stride {len(self.conv_stride)}")
        if short := [k for k, s in zip(self.conv_kernel, self.conv_stride, strict=True) if not 0 < s <= k]:
            raise BadInput(f"--conv_kernel {short[0]} is shorter than its stride: samples would be passed over")
        if (self.negatives == "speaker") != bool(self.speaker_column):
            raise BadInput("--negatives speaker and --speaker_column go together")


def build(args: CpcAudioArgs) -> tuple[CpcAudioModel, Wav2Vec2FeatureExtractor]:
    """New, or from a checkpoint."""
    if args.model_name_or_path:
        return cpc.from_pretrained(args.model_name_or_path, args.trust_remote_code, CpcAudioConfig.model_type)
    config = CpcAudioConfig(
        hidden_size=args.hidden_size, context_size=args.context_size, conv_kernel=args.conv_kernel,
        conv_stride=args.conv_stride, sampling_rate=args.sampling_rate,
    )  # fmt: skip
    # no normalisation over the whole recording: the features of a moment would depend on what comes later
    rate = {"sampling_rate": args.sampling_rate, "do_normalize": False, "return_attention_mask": True}
    return CpcAudioModel(config), Wav2Vec2FeatureExtractor(**rate)


def main(args: CpcAudioArgs) -> None:
    start(args)
    if args.dataset == "voices":
        args.probe_dataset = args.probe_dataset or "voices"
    model, extractor = build(args)
    config, rows = model.config, load(args.dataset, args.audio_column, args.speaker_column)
    crop = round(args.crop_seconds * config.frame_rate)
    if crop <= args.prediction_steps:
        raise BadInput(f"--crop_seconds {args.crop_seconds} is {crop} frames; --prediction_steps wants more of them")
    size = {"sampling_rate": config.sampling_rate, "crop": crop * config.hop}
    size["shortest"] = (args.prediction_steps + 1) * config.hop
    size["speakers"] = args.speaker_column is not None
    train_rows, test_rows = sources.split(rows, args.held_out)
    recordings = Recordings(train_rows, **size, seed=args.seed)
    held_out = Recordings(test_rows, **size, what="held-out recordings")
    batch = args.per_device_train_batch_size * world_size()
    if args.negatives == "speaker" and (company := recordings.company(batch)) < 1:
        raise BadInput(
            f"--negatives speaker: a batch of {batch} has {company:.1f} others by the same speaker, on average: "
            "too few to choose among; raise --per_device_train_batch_size, or take --negatives within"
        )
    loader = Loader(
        recordings, args.per_device_train_batch_size, seed=args.seed, num_workers=args.dataloader_num_workers
    )

    method = cpc.CPC(model, args.prediction_steps, args.negatives, unit="recordings")
    if args.model_name_or_path:
        method.load_predictions(args.model_name_or_path)
    optimizer = adamw(method, args.learning_rate, args.weight_decay, (args.adam_beta1, args.adam_beta2))
    evaluation = Prediction(held_out)
    probed = Probed(evaluation, args, method, extractor)
    uploads = export.Uploads(args, method, extractor)
    summary = train(method, loader, args, [optimizer], evaluate=probed, after_save=uploads)
    if PartialState().is_main_process:
        finish(args, summary, method, extractor, recordings, evaluation, probed)


def finish(
    args: CpcAudioArgs, summary: Summary, method: cpc.CPC, extractor, recordings, evaluation: Prediction, probed: Probed
) -> None:
    """Export, prove that it loads, draw, describe, print."""
    directory, held_out, config = Path(args.output_dir), evaluation.held_out, method.model.config
    before = "before training" if args.model_name_or_path else "untrained"
    columns = {"trained": summary.evaluations[-1], before: summary.evaluations[0], "chance": evaluation.chances}
    figures.prediction_curve(
        {name: [values[f"accuracy_{k}_ahead"] for k in range(1, method.steps + 1)] for name, values in columns.items()},
        f"frames ahead, of {1000 / config.frame_rate:.0f} ms", directory / "figures" / "prediction.png",
    )  # fmt: skip
    shown = {"prediction.png": "How often the true future is found, against how far ahead it lies."}
    shown |= heard(method, held_out, directory / "figures", args.dataset == "voices")
    kept = ("accuracy", "accuracy_1_ahead", f"accuracy_{method.steps}_ahead", "knn_accuracy")
    results = {name: {k: values[k] for k in kept if k in values} for name, values in columns.items()}
    probed.beside(results)
    record = export.Record(
        title=directory.name,
        description=f"{cpc.__doc__.splitlines()[0]} A `CpcAudioModel` for recordings at {config.sampling_rate:,} Hz: "
        f"`last_hidden_state` has {config.frame_rate:g} frames a second, each of all that was heard up to then; "
        "`pooler_output` is their mean, one vector for a recording.",
        data=f"{args.dataset}: {len(recordings.rows):,} recordings, {recordings.seconds / 60:.1f} minutes, "
        f"{'who speaks told only which recordings to compare' if args.speaker_column else 'no labels'}, "
        f"and {len(held_out):,} held out. {voices.LICENCE if args.dataset == 'voices' else ''}",
        task="audio-classification",
        dataset=args.dataset,
        results=results,
        units=f"Per cent: how often the true future is found among the candidates ({args.negatives}).",
        snippets=cpc.AUDIO_SNIPPETS,
        limits="It has learned how these recordings sound; test it on your own before you rely on it.",
        figures=shown,
        tags=["cpc", "audio"],
        base_model=args.model_name_or_path,
    )
    features.print_table(f"{len(held_out):,} held-out recordings of {args.dataset}", results)
    two = held_out.__getitems__([0, len(held_out) - 1])["input_values"]
    example = {"raw_speech": two, "sampling_rate": config.sampling_rate}
    export.finish(
        method, extractor, method.model, example, record, summary, args, trivial="log(candidates), that of chance"
    )


@torch.no_grad()
def heard(method: cpc.CPC, held_out: Recordings, directory: Path, synthetic: bool) -> dict[str, str]:
    """Draw what the encoder makes of held-out recordings; the captions."""
    model, of = method.model.eval().cpu(), "synthetic " * synthetic
    longest = int(held_out.lengths[:100].argmax())
    wave = held_out.wave(longest)[: 4 * held_out.rate]
    context = model(torch.from_numpy(wave)[None]).last_hidden_state[0]
    figures.heard(wave, context.float().numpy(), held_out.rate, directory / "context.png")
    captions = {"context.png": f"A held-out {of}recording, and the context features under it."}
    usual = (name for name in ("label", "digit", "speaker") if name in held_out.data.column_names)
    labels = next((name for name in usual if 1 < len(set(held_out.data[name])) <= 20), None)
    if labels and len(held_out) > 2:
        some = range(min(len(held_out), 500))
        vectors = torch.cat([model(torch.from_numpy(held_out.wave(i))[None]).pooler_output for i in some])
        names = [str(held_out.data[int(held_out.rows[i])][labels]) for i in some]
        figures.label_map(vectors.float().numpy(), names, directory / "map.png")
        captions["map.png"] = f"Held-out {of}recordings by their mean context, coloured by {labels}: no label was used."
    return captions


if __name__ == "__main__":
    command(main, CpcAudioArgs, __doc__)
