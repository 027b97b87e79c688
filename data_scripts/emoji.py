"""Write the emoji data set as Parquet, with its card: the data that `--dataset emoji` makes on first use.

python data_scripts/emoji.py data/emoji
python recipes/clip.py --dataset data/emoji
"""

from __future__ import annotations

import sys
from pathlib import Path

from mmssl.arguments import explained
from mmssl.data.built_in import emoji
from mmssl.plain_text import say

if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    with explained():
        emoji.build(Path(sys.argv[1]))
    say(f"{sys.argv[1]}: train.parquet, test.parquet, README.md. {emoji.LICENCE}")
