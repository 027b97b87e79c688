"""Write the emoji data set as Parquet, with its card: the data that `--dataset emoji` makes on first use.

python data_scripts/emoji.py data/emoji
python recipes/clip.py --dataset data/emoji
"""

from __future__ import annotations

import sys
from pathlib import Path

from mmssl.data.built_in import emoji
from mmssl.errors import BadInput

if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    try:
        emoji.build(Path(sys.argv[1]))
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{sys.argv[1]}: train.parquet, test.parquet, README.md. {emoji.LICENCE}")
