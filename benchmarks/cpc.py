"""Seconds of audio per second of training: CPC in the shared loop, and transformers' Wav2Vec2ForPreTraining in Trainer.

    python benchmarks/cpc.py                                          # the recipe's sizes, on the synthetic voices
    python benchmarks/cpc.py --dataset speech.parquet --sampling_rate 16000 --hidden_size 512 --context_size 256 \
        --conv_kernel 10 8 4 4 4 --conv_stride 5 4 2 2 2 --crop_seconds 1.28 --batch_size 8     # the paper's

Same recordings, decoded once for both, same crops, batch, convolutions and with them the same frames a second; the
transformer above them has the width of ours and as many layers as come nearest to our number of weights (both are
printed). The two learn different things: this compares the cost of a step. Trainer and the model are at their defaults,
masks and negatives drawn as transformers' example of pretraining speech draws them. Each frame's cosine with its 100
negatives is most of that step on a CPU: a side with ten shows how much. Where bf16 is fast there is Trainer with bf16
too. The sides take turns, a few steps each; figures are medians over turns of ratios within a turn.

At the end: our step's matrix products and convolutions, those of the GRU counted by hand where the counter does not see
into it, as a fraction of this machine's measured peak.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import turns
from torch import nn
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode
from transformers import Trainer, Wav2Vec2Config, Wav2Vec2ForPreTraining
from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices, _sample_negative_indices
from transformers.utils import logging

from mmssl.arguments import Flags, command, flag
from mmssl.data.audio.recordings import Recordings, load
from mmssl.data.loader import Loader
from mmssl.device import fast_bf16
from mmssl.methods import cpc
from mmssl.models.cpc_audio import CpcAudioConfig
from mmssl.training import optim
from mmssl.training.loop import train

sys.path.insert(0, str(Path(__file__).parent.parent / "recipes"))
from cpc_audio import CpcAudioArgs

RECIPE = CpcAudioArgs()


@dataclass
class BenchmarkArgs(Flags):
    dataset: str = flag("voices", "recordings: a built-in name, a folder, Parquet or a Hub id")
    sampling_rate: int = flag(RECIPE.sampling_rate, "Hz", at_least=1)
    hidden_size: int = flag(RECIPE.hidden_size, "channels of the convolutions", at_least=1)
    context_size: int = flag(RECIPE.context_size, "of the GRU, and of the transformer", at_least=1)
    conv_kernel: list[int] = flag(RECIPE.conv_kernel, "of both", at_least=1)
    conv_stride: list[int] = flag(RECIPE.conv_stride, "of both", at_least=1)
    crop_seconds: float = flag(RECIPE.crop_seconds, "of a recording", above=0)
    negatives: str = flag(RECIPE.negatives, "of ours", ("within", "across"))
    batch_size: int = flag(RECIPE.per_device_train_batch_size, "recordings in a step", at_least=1)
    turns: int = flag(7, "of every side", at_least=1)
    steps: int = flag(20, "in a turn", at_least=1)
    threads: int = flag(torch.get_num_threads(), "of torch, for every side", at_least=1)
    use_cpu: bool = flag(False, "use the CPU even if there is a GPU")

    def recipe(self, **more) -> CpcAudioArgs:
        names = ("sampling_rate", "hidden_size", "context_size", "conv_kernel", "conv_stride", "negatives", "use_cpu")
        return CpcAudioArgs(**{name: getattr(self, name) for name in names}, **turns.RUN, **more)


def main(args: BenchmarkArgs) -> None:
    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    model, _ = cpc.build_audio(args.recipe())
    config = model.config
    crop = round(args.crop_seconds * config.frame_rate) * config.hop
    recordings = Recordings(load(args.dataset)["train"], config.sampling_rate, crop, crop // 2, seed=0)
    with tempfile.TemporaryDirectory() as place:
        ours, theirs = Ours(args, recordings, place), Theirs(args, config, recordings, place)
        sides: turns.Sides = {turns.OURS: ours, "Trainer": theirs}
        sides["Trainer, 10 negatives"] = Theirs(args, config, recordings, place, num_negatives=10)
        if fast_bf16(args.use_cpu):
            sides["Trainer, bf16"] = Theirs(args, config, recordings, place, bf16=True)
        seconds = turns.take_turns(sides, args.turns, args.steps)
        print(
            f"{args.turns} turns of {args.steps} steps of {args.batch_size} x {crop / config.sampling_rate:.2f} s at "
            f"{config.sampling_rate:,} Hz, {config.frame_rate:g} frames a second; CPC of {weights(ours.method):,} "
            f"weights, Wav2Vec2 of {weights(theirs.model):,}; {args.threads} threads; mmssl in "
            f"{turns.precision(args.use_cpu)}"
        )
        turns.report(seconds, args.steps * args.batch_size * crop / config.sampling_rate, "s of audio")
        gru = uncounted(ours.method, args.batch_size, crop)
        print(f"the step: {turns.share_of_peak(ours, ours.method.model.device, gru)}")


def weights(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def uncounted(method: cpc.CPC, batch: int, samples: int) -> float:
    """Floating point operations of the GRU in a step, forward and twice that backward, where the counter sees none of
    them: cuDNN's is one operator."""
    gru, frames = method.model.context, samples // method.model.config.hop
    encoded = torch.zeros(batch, frames, gru.input_size, device=method.model.device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        gru(encoded)
    matrices = sum(p.numel() for name, p in gru.named_parameters() if name.startswith("weight"))
    return 0.0 if counter.get_total_flops() else 3 * 2 * matrices * batch * frames


class Ours:
    """The recipe's own parts. Called with a number of steps; returns seconds."""

    def __init__(self, args: BenchmarkArgs, recordings: Recordings, place: str) -> None:
        torch.manual_seed(0)
        model, _ = cpc.build_audio(args.recipe())
        self.args, self.place = args, f"{place}/ours"
        self.method = cpc.CPC(model, RECIPE.prediction_steps, args.negatives, unit="recordings")
        self.loader = Loader(recordings, args.batch_size)

    def __call__(self, steps: int) -> float:
        recipe = self.args.recipe(output_dir=self.place, max_steps=steps)
        return train(self.method, self.loader, recipe, [optim.from_args(self.method, recipe)]).seconds


class Crops(Dataset):
    """The same crops, as Trainer wants them: one by one."""

    def __init__(self, recordings: Recordings) -> None:
        self.recordings = recordings

    def __len__(self) -> int:
        return len(self.recordings)

    def __getitems__(self, places: list[int]) -> list[dict[str, torch.Tensor]]:
        return [{"input_values": wave} for wave in self.recordings.__getitems__(places)["input_values"]]


class Theirs:
    """Trainer at its defaults. Called with a number of steps; returns seconds."""

    def __init__(
        self,
        args: BenchmarkArgs,
        config: CpcAudioConfig,
        recordings: Recordings,
        place: str,
        num_negatives: int = 100,
        bf16: bool = False,
    ) -> None:
        self.args, self.data, self.place, self.bf16 = args, Crops(recordings), f"{place}/theirs", bf16
        self.num_negatives = num_negatives
        ours = weights(cpc.CPC(cpc.build_audio(args.recipe())[0], RECIPE.prediction_steps))
        sizes = {layers: weights(self._model(config, layers)) for layers in range(1, 13)}
        torch.manual_seed(0)
        self.model = self._model(config, min(sizes, key=lambda layers: abs(sizes[layers] - ours)))

    def _model(self, config: CpcAudioConfig, layers: int) -> Wav2Vec2ForPreTraining:
        width = config.context_size
        shape = Wav2Vec2Config(
            conv_dim=[config.hidden_size] * len(config.conv_kernel), conv_kernel=list(config.conv_kernel),
            conv_stride=list(config.conv_stride), num_feat_extract_layers=len(config.conv_kernel), hidden_size=width,
            num_hidden_layers=layers, num_attention_heads=max(1, width // 64), intermediate_size=2 * width,
            num_conv_pos_embeddings=16, codevector_dim=width, proj_codevector_dim=width,
            mask_time_prob=0.65,  # as pretraining wants it; the config's 0.05 leaves short crops without a mask
        )  # fmt: skip
        return Wav2Vec2ForPreTraining(shape)

    def _collate(self, items: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        waves, config = torch.stack([item["input_values"] for item in items]), self.model.config
        frames = int(self.model._get_feat_extract_output_lengths(waves.shape[1]))
        masked = _compute_mask_indices((len(waves), frames), config.mask_time_prob, config.mask_time_length)
        negatives = _sample_negative_indices((len(waves), frames), self.num_negatives, masked)
        return {
            "input_values": waves,
            "mask_time_indices": torch.from_numpy(masked),
            "sampled_negative_indices": torch.from_numpy(negatives),
        }

    def __call__(self, steps: int) -> float:
        settings = turns.trainer_settings(
            self.args.use_cpu,
            output_dir=self.place,
            max_steps=steps,
            per_device_train_batch_size=self.args.batch_size,
            remove_unused_columns=False,
            bf16=self.bf16,
        )
        trainer = Trainer(self.model, settings, train_dataset=self.data, data_collator=self._collate)
        return trainer.train().metrics["train_runtime"]


if __name__ == "__main__":
    command(main, BenchmarkArgs, __doc__)
