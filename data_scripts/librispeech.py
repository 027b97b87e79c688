"""Write the first hours of LibriSpeech as Parquet, with a card: streamed from the Hub, or from the unpacked archives.

python data_scripts/librispeech.py --hours 10 --output_dir data/librispeech
python data_scripts/librispeech.py --hours 10 --source LibriSpeech    # as openslr.org/12 unpacks: train-clean-100, ...
python recipes/cpc_audio.py --dataset data/librispeech --sampling_rate 16000
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from datasets import Audio, IterableDataset, load_dataset

from mmssl.arguments import Flags, command, flag
from mmssl.data.audio import parquet, recordings
from mmssl.errors import BadInput, first_line
from mmssl.plain_text import say

PATTERN = "{speaker}-{chapter}-{utterance}"
CARD = """---
license: cc-by-4.0
task_categories: [automatic-speech-recognition, audio-classification]
language: [en]
pretty_name: LibriSpeech, the first hours
---
# LibriSpeech, the first hours

Read English speech ({contents}): `audio` (FLAC), `sampling_rate` in Hz, `speaker`, `chapter`, `utterance`. No speaker
of the test part is in the training part.

Panayotov et al. 2015, LibriSpeech: an ASR corpus based on public domain audio books, https://www.openslr.org/12,
CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/); the recordings are unchanged.
"""


@dataclass
class LibriSpeechArgs(Flags):
    source: str = flag(
        "openslr/librispeech_asr", "a Hub id, or the folder that the archives of openslr.org/12 unpack to"
    )
    configuration: str = flag("clean", "configuration on the Hub: clean or other")
    split: str = flag("train.100", "split on the Hub: train.100 or train.360 of clean, train.500 of other")
    hours: float = flag(10.0, "hours of speech, from the beginning", above=0, at_most=10**6)
    test_hours: float = flag(0.5, "hours of speech in the test part", above=0, at_most=10**6)
    output_dir: str = flag("data/librispeech", "where the Parquet files and the card go")


def stream(args: LibriSpeechArgs, split: str) -> IterableDataset:
    try:
        rows = load_dataset(args.source, args.configuration, split=split, streaming=True)
        return rows.cast_column("audio", Audio(decode=False))
    except Exception as error:  # network, Hub and data set raise many kinds
        answer = f"{type(error).__name__}: {first_line(error)}"
        raise BadInput(f"--source {args.source}: no folder here, and the Hub answered: {answer}") from error


def main(args: LibriSpeechArgs) -> None:
    here = Path(args.source).is_dir()
    rows = recordings.load(args.source) if here else {"train": stream(args, args.split), "test": stream(args, "test")}
    parts = parquet.described(rows, PATTERN)
    hours = {"train": args.hours, "test": args.test_hours}
    written = parquet.write(Path(args.output_dir), parts, parquet.columns(PATTERN), CARD, hours)
    say(f"{written}. CC BY 4.0")


if __name__ == "__main__":
    command(main, LibriSpeechArgs, __doc__)
