"""Write the synthetic voices as Parquet, with their card: the data that `--dataset voices` makes on first use.

python data_scripts/voices.py data/voices
python recipes/cpc_audio.py --dataset data/voices --probe_dataset data/voices
"""

from __future__ import annotations

import sys
from pathlib import Path

from mmssl.arguments import explained
from mmssl.data.built_in import voices
from mmssl.plain_text import say

if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    with explained():
        voices.build(Path(sys.argv[1]))
    say(f"{sys.argv[1]}: train-00000.parquet, test-00000.parquet, README.md. {voices.LICENCE}")
