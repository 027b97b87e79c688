"""Write a folder of recordings as Parquet, with a card. Labels come from its subfolders or from the file names.

python data_scripts/audio_folder.py --source birds --licence cc-by-4.0                      # birds/wren/0001.wav: wren
python data_scripts/audio_folder.py --source birds --pattern "{label}/{site}_{take:d}" --hold_out site=lake,moor
python recipes/cpc_audio.py --dataset data/audio_folder --probe_dataset data/audio_folder

WAV, FLAC, OGG or MP3, unchanged. Folders called train and test become those parts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import DatasetCardData

from mmssl.arguments import Flags, command, flag
from mmssl.data.audio import parquet, recordings
from mmssl.errors import BadInput
from mmssl.plain_text import code, markdown, one_line, say

CARD = """---
{metadata}
---
# {name}

Recordings ({{contents}}): `audio`, `sampling_rate` in Hz, {columns}.

Licence: {licence}. The recordings are unchanged; the other columns come from their names, {pattern}.
"""


@dataclass
class FolderArgs(Flags):
    source: str = field(metadata={"help": "folder of recordings, or of folders of them"})
    output_dir: str = flag("data/audio_folder", "where the Parquet files and the card go")
    pattern: str = flag(
        "{label}/{name}", "columns encoded in the end of a path, without the suffix; {take:d} is a number"
    )
    hold_out: str | None = flag(None, "test part: column=value,value; default: the folders called test")
    licence: str = flag("unknown", "licence of the recordings, as the Hub spells it: cc0-1.0, cc-by-4.0, ...")


def main(args: FolderArgs) -> None:
    if not Path(args.source).is_dir():
        raise BadInput(f"--source {args.source}: no such folder")
    if not (columns := parquet.columns(args.pattern)):
        raise BadInput(f"--pattern {args.pattern} names no column; write {{label}}/{{name}}, for instance")
    name, licence = (one_line(said) for said in (Path(args.source).resolve().name, args.licence))
    metadata = DatasetCardData(license=licence, task_categories=["audio-classification"], pretty_name=name).to_yaml()
    shown = {"name": markdown(name), "licence": markdown(licence), "pattern": code(args.pattern), "metadata": metadata}
    card = CARD.format(**shown, columns=", ".join(f"`{column}`" for column in columns))
    parts = parquet.described(recordings.load(args.source), args.pattern, args.hold_out)
    say(parquet.write(Path(args.output_dir), parts, columns, card))


if __name__ == "__main__":
    command(main, FolderArgs, __doc__)
