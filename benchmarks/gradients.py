"""The gradient of two processes against that of one on the whole batch: ours, lightly's and solo-learn's losses.

    python benchmarks/gradients.py
    python benchmarks/gradients.py --peer_python peer/bin/python --solo_learn path/to/solo-learn

A linear encoder and two views of 32 rows. Each process takes the loss of its 16 rows, and gradients are averaged over
processes, as DistributedDataParallel does it. Printed are the length of the gradient relative to that of one process
on all 32 rows, and the cosine of the two: 1.000 and 1.000 if it does not matter on how many processes one trains.
lightly is measured with its default and with gather_distributed=True; see lightly_worker.py for its environment, which
for solo-learn (a clone of its repository, commit 9187ee3) also needs timm.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from mmssl.arguments import Flags, command, flag


@dataclass
class BenchmarkArgs(Flags):
    peer_python: str | None = flag(None, "interpreter of an environment with lightly")
    solo_learn: str | None = flag(None, "a clone of solo-learn, imported by peer_python")


def main(args: BenchmarkArgs) -> None:
    sides = {"mmssl": (sys.executable, "ours")}
    if args.peer_python:
        sides["lightly, its default"] = (args.peer_python, "lightly_default")
        sides["lightly, gather_distributed"] = (args.peer_python, "lightly_gathered")
        if args.solo_learn:
            sides["solo-learn"] = (args.peer_python, "solo_learn")
    print(f"{'':<30}{'loss':<16}{'length':>8}{'cosine':>8}")
    for name, (python, side) in sides.items():
        worker = [python, "-W", "ignore", Path(__file__).with_name("gradients_worker.py"), side, args.solo_learn or ""]
        ran = subprocess.run(worker, stdout=subprocess.PIPE, text=True, check=True)
        for loss, (length, cosine) in json.loads(ran.stdout.splitlines()[-1]).items():
            print(f"{name:<30}{loss:<16}{length:>8.3f}{cosine:>8.3f}")


if __name__ == "__main__":
    command(main, BenchmarkArgs, __doc__)
