"""Write the Free Spoken Digit Dataset as Parquet, with its card: from its WAV files, or from a copy on the Hub.

git clone https://github.com/Jakobovski/free-spoken-digit-dataset
python data_scripts/spoken_digits.py --source free-spoken-digit-dataset/recordings --output_dir data/spoken_digits
python recipes/cpc_audio.py --dataset data/spoken_digits --probe_dataset data/spoken_digits

--hold_out speaker=theo,lucas holds out two speakers; the data set's own split holds out the first five takes of each.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mmssl.arguments import Flags, command, flag
from mmssl.data.audio import parquet, recordings
from mmssl.plain_text import say

PATTERN = "{digit:d}_{speaker}_{take:d}"
CARD = """---
license: cc-by-sa-4.0
task_categories: [audio-classification]
language: [en]
pretty_name: Free Spoken Digit Dataset
---
# Free Spoken Digit Dataset

Spoken English digits ({contents}): `audio`, `sampling_rate` in Hz, `digit`, `speaker`, `take`.

From https://github.com/Jakobovski/free-spoken-digit-dataset, Zohar Jackson and others, CC BY-SA 4.0
(https://creativecommons.org/licenses/by-sa/4.0/); the recordings are unchanged.
"""


@dataclass
class DigitsArgs(Flags):
    source: str = field(metadata={"help": "its WAV files, {digit}_{speaker}_{take}.wav; or a Hub id, with those names"})
    output_dir: str = flag("data/spoken_digits", "where the Parquet files and the card go")
    hold_out: str = flag("take=0,1,2,3,4", "test part: column=value,value; the columns are digit, speaker and take")


def main(args: DigitsArgs) -> None:
    parts = parquet.described(recordings.load(args.source), PATTERN, args.hold_out)
    written = parquet.write(Path(args.output_dir), parts, parquet.columns(PATTERN), CARD)
    say(f"{written}. CC BY-SA 4.0")


if __name__ == "__main__":
    command(main, DigitsArgs, __doc__)
