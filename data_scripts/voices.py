"""Write the synthetic voices as Parquet, with their card: the data that `--dataset voices` makes on first use.

python data_scripts/voices.py data/voices
python recipes/cpc_audio.py --dataset data/voices --probe_dataset data/voices
"""

from __future__ import annotations

import sys
from pathlib import Path

from mmssl.data.built_in import voices
from mmssl.errors import BadInput

if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    try:
        voices.build(Path(sys.argv[1]))
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{sys.argv[1]}: train-00000.parquet, test-00000.parquet, README.md. {voices.LICENCE}")
