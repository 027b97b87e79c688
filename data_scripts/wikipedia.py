"""Write the Wikipedia articles as Parquet, with their card: the data that `--dataset wikipedia` makes on first use.

python data_scripts/wikipedia.py data/wikipedia
python recipes/word2vec.py --dataset data/wikipedia/train.parquet
"""

from __future__ import annotations

import sys
from pathlib import Path

from mmssl.arguments import explained
from mmssl.data.built_in import wikipedia
from mmssl.plain_text import say

if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    with explained():
        wikipedia.build(Path(sys.argv[1]))
    say(f"{sys.argv[1]}: train.parquet, test.parquet, README.md. {wikipedia.LICENCE}")
