"""A local page to look into finished runs: search, zero-shot labels, reconstructions, words, sounds, loss curves.

python -m mmssl.look runs/clip                            at http://127.0.0.1:7860
python -m mmssl.look runs/clip --dataset my_images        search in other data than that of the run
python -m mmssl.look runs/simclr runs/moco                two runs, and their curves over each other
python -m mmssl.look runs/clip --space                    write the same page as a Space of the Hub
"""

from __future__ import annotations

import argparse
import time

from mmssl.arguments import check_text, collect_seldom, explained

START = time.perf_counter()


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mmssl.look", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", help="directories of finished runs, or Hub ids of pushed ones")
    parser.add_argument("--dataset", help="the data to search in; default: that of the run, if it is still there")
    parser.add_argument(
        "--held_out", type=int, help="rows held out from training, if the data has no test split; 0: all; default: as "
        "in the run, and all rows of other data"
    )  # fmt: skip
    parser.add_argument("--max_samples", type=int, default=0, help="use only the first n rows; 0: all")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: also for other machines")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    parser.add_argument("--use_cpu", action="store_true", help="use the CPU even if there is a GPU")
    parser.add_argument("--space", action="store_true", help="write the page as a Space to space/ of the run, and end")
    return parser


def main(argv: list[str] | None = None) -> None:
    given = parser().parse_args(argv)
    collect_seldom()
    with explained():
        for flag, text in [("run", name) for name in given.runs] + [("--dataset", given.dataset)]:
            if text is not None:
                check_text(flag, text)
        if given.space:
            from mmssl.look import space

            space.write(given.runs, given.dataset, given.held_out, given.max_samples)
        else:
            from mmssl.look import page

            data = {"held_out": given.held_out, "max_samples": given.max_samples, "use_cpu": given.use_cpu}
            page.show(given.runs, given.dataset, given.host, given.port, START, **data)


if __name__ == "__main__":
    main()
