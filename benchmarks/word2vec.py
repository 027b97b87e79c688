"""word2vec against gensim: the same text, the same parameters, in turns in one process; the median of the pairs'
ratios.

python benchmarks/word2vec.py speed --text english5m.txt.gz --dimension 100 --pairs 5      training, words per second;
                                                                                           and the whole way, 5 epochs
python benchmarks/word2vec.py raw --text english5m.txt.gz --pairs 5                        text to vectors, 5 epochs
python benchmarks/word2vec.py quality --text english5m.txt.gz --seeds 0 1 2                3 epochs

torchrun --nproc_per_node 2 benchmarks/word2vec.py ours --threads 1 --text english5m.txt.gz    quality of processes
python benchmarks/word2vec.py peak --threads 1 --text english5m.txt.gz                       share of the machine's peak

The whole way is from the start of a process to its end: the recipe, which also scores the vectors before training and
reloads what it has written; and a script of gensim's that trains, scores once and writes. The recipe's first run, which
numbers the text and compiles the kernel, is printed and not counted: what it keeps on disk is there for all others.

gensim runs in its fastest mode: `corpus_file`, an unpacked text on disk, `workers` threads without the interpreter's
lock. In that mode its learning rate does not fall as documented: within an epoch a thread counts its own sentences
against those of the whole text (gensim 4.4, word2vec_corpusfile.pyx, get_next_alpha), so that with two workers the rate
falls half as fast and jumps at the epoch's end; after 3 epochs it is still a sixth of the first, and its mean is 1.17
times as high. In so short a training that is worth 0.01 to 0.04. So quality is compared twice: with gensim on one
worker, where the rate falls as it should, at the same rate; and with gensim on `--threads` workers, at the same mean
rate. With --results file.jsonl every run is kept there, and the medians are over all runs in that file."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import gensim
import torch
from accelerate import PartialState

from mmssl import bounded_json
from mmssl.arguments import Flags, TrainArgs, explained, flag
from mmssl.data.loader import Loader
from mmssl.data.text import corpus
from mmssl.data.text.skip_grams import Pieces, windows
from mmssl.device import cores
from mmssl.evaluation import word_similarity
from mmssl.methods.word2vec import Word2Vec
from mmssl.training import steps
from mmssl.training.loop import train

WINDOW, NEGATIVE, SAMPLE, MIN_COUNT, RATE = 5, 5, 1e-3, 5, 0.025
EPOCHS = 3  # for quality
WHOLE_EPOCHS = 5
BATCH = 400  # thousand words to a step: with many, the threads seldom wait for each other
BATCH_OF_PROCESSES = 50  # the same, where processes meet after each step

GENSIM = f"""
import sys
from gensim.models import Word2Vec
from gensim.test.utils import datapath
text, dimension, threads, file = sys.argv[1:]
model = Word2Vec(corpus_file=text, sg=1, vector_size=int(dimension), window={WINDOW}, negative={NEGATIVE},
                 sample={SAMPLE}, min_count={MIN_COUNT}, alpha={RATE}, workers=int(threads), epochs={WHOLE_EPOCHS})
for test in ("wordsim353.tsv", "simlex999.txt"):
    print(model.wv.evaluate_word_pairs(datapath(test))[1])
print(model.wv.evaluate_word_analogies(datapath("questions-words.txt"))[0])
model.wv.save_word2vec_format(file, binary=True)
"""


def ours(
    text: corpus.Corpus, dimension: int, threads: int, epochs: int, seed: int = 0, rate: float = RATE
) -> tuple[float, Word2Vec]:
    """Words per second through the shared loop, and what was trained. rate: the first; it falls linearly to zero."""
    batch = BATCH if PartialState().num_processes == 1 else BATCH_OF_PROCESSES
    with tempfile.TemporaryDirectory() as place:
        args = TrainArgs(
            output_dir=place, num_train_epochs=epochs, per_device_train_batch_size=batch, learning_rate=rate,
            lr_scheduler_type="linear", save_steps=0, seed=seed, use_cpu=True, bf16="no",
        )  # fmt: skip
        loader = Loader(Pieces(text.ids), batch, lambda batch: batch, seed=seed)
        method = Word2Vec(text.words, text.counts, dimension, WINDOW, NEGATIVE, SAMPLE, seed, threads)
        optimizer = torch.optim.SGD(method.parameters(), lr=rate)
        summary = train(method, loader, args, [optimizer], steps.in_place)
    tokens = summary.samples_seen * Pieces.PIECE
    return tokens * float((text.ids >= 0).mean()) / summary.seconds, method


def theirs(file: Path, dimension: int, threads: int, epochs: int, seed: int = 0, speed: bool = False):
    """gensim's words per second and its model."""
    model = gensim.models.Word2Vec(
        sg=1, vector_size=dimension, window=WINDOW, negative=NEGATIVE, sample=SAMPLE, min_count=MIN_COUNT, alpha=RATE,
        workers=threads, seed=seed + 1,
    )  # fmt: skip
    model.build_vocab(corpus_file=str(file))
    began = time.perf_counter()
    model.train(
        corpus_file=str(file), total_words=model.corpus_total_words, total_examples=model.corpus_count, epochs=epochs
    )
    kept = sum(model.wv.get_vecattr(word, "count") for word in model.wv.index_to_key) if speed else 0
    return kept * epochs / (time.perf_counter() - began), model


def speed(options, file: Path, text: corpus.Corpus) -> dict:
    our_rate, _ = ours(text, options.dimension, options.threads, 1)
    their_rate, _ = theirs(file, options.dimension, options.threads, 1, speed=True)
    return {"ours": our_rate, "gensim": their_rate, "ratio": our_rate / their_rate}


def whole(options, file: Path, place: Path) -> dict:
    """Seconds from process start to process end, ours and gensim's."""
    recipe = Path(__file__).parent.parent / "recipes" / "word2vec.py"
    settings = {
        "dataset": file, "plain": False, "output_dir": place / "run", "dimension": options.dimension, "window": WINDOW,
        "negative": NEGATIVE, "sample": SAMPLE, "min_count": MIN_COUNT, "learning_rate": RATE,
        "threads": options.threads, "num_train_epochs": WHOLE_EPOCHS,
    }  # fmt: skip
    flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    kept = {"MMSSL_HOME": str(place / "home"), "NUMBA_CACHE_DIR": str(place / "compiled")}
    commands = {
        "ours": [sys.executable, recipe, *flags, "--overwrite_output_dir", "--use_cpu"],
        "gensim": [sys.executable, "-c", GENSIM, file, str(options.dimension), str(options.threads), place / "v.bin"],
    }
    seconds = {}
    if not (place / "home").exists():
        commands = {"first": commands["ours"]} | commands
    for name, command in commands.items():
        began = time.perf_counter()
        subprocess.run(command, env=os.environ | kept, check=True, capture_output=True)
        seconds[name] = time.perf_counter() - began
    if "first" in seconds:
        print(f"the recipe's first run, process start to process end: {seconds.pop('first'):.1f} s", flush=True)
    return {f"whole_{name}_seconds": s for name, s in seconds.items()} | {
        "whole_ratio": seconds["gensim"] / seconds["ours"]
    }


def raw(options, file: Path, text: corpus.Corpus) -> dict:
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as cache:
        fresh = corpus.load(file, min_count=MIN_COUNT, cache=cache, threads=options.threads)
        ours(fresh, options.dimension, options.threads, 5)
    our_seconds = time.perf_counter() - began
    began = time.perf_counter()
    theirs(file, options.dimension, options.threads, 5)
    their_seconds = time.perf_counter() - began
    return {"ours_seconds": our_seconds, "gensim_seconds": their_seconds, "ratio": their_seconds / our_seconds}


def quality(options, file: Path, text: corpus.Corpus, seed: int) -> dict:
    """{"same rate": ..., "same mean rate": ...}, each {"ours": figures, "gensim": figures}."""
    found = {}
    for name, workers in (("same rate, 1 worker", 1), (f"same mean rate, {options.threads} workers", options.threads)):
        # gensim's mean rate is RATE * (1 - (EPOCHS - 1 + 1 / workers) / (2 * EPOCHS)); ours is half of the first
        rate = RATE * (2 - (EPOCHS - 1 + 1 / workers) / EPOCHS)
        _, method = ours(text, options.dimension, options.threads, EPOCHS, seed, rate)
        _, model = theirs(file, options.dimension, workers, EPOCHS, seed)
        sides = {"ours": method.keyed_vectors(), "gensim": model.wv}
        found[name] = {who: word_similarity.evaluate(vectors) for who, vectors in sides.items()}
    return found


def peak(threads: int) -> float:
    """FLOP per second of torch's matrix product: what this machine can do at best."""
    torch.set_num_threads(threads)
    a = torch.randn(1024, 1024)
    a @ a
    began = time.perf_counter()
    for _ in range(30):
        a @ a
    rate = 30 * 2 * 1024**3 / (time.perf_counter() - began)
    torch.set_num_threads(1)
    return rate


@dataclass
class BenchmarkArgs(Flags):
    """The flags of `main`, once more for their ranges."""

    what: str
    text: str
    results: str | None
    dimension: int = flag(100, "of the vectors", at_least=1, at_most=16384)
    threads: int = flag(1, "of the kernel", at_least=1, at_most=1024)
    pairs: int = flag(5, "runs of each side", at_least=1)
    seeds: list[int] = flag([0, 1, 2], "of quality, each one run", at_least=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "raw", "quality", "ours", "peak"))
    parser.add_argument("--text", required=True)
    parser.add_argument("--dimension", type=int, default=100)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--results", help="append each pair here")
    with explained():
        options = BenchmarkArgs(**vars(parser.parse_args()))
    torch.set_num_threads(1)
    PartialState(cpu=True)
    with tempfile.TemporaryDirectory() as place:
        file = Path(options.text)
        if file.suffix == ".gz":
            file = Path(place, "text.txt")
            with gzip.open(options.text) as packed, open(file, "wb") as f:
                shutil.copyfileobj(packed, f)
        text = corpus.load(file, min_count=MIN_COUNT, cache=Path(place, "cache"))
        runs = []
        if options.what not in ("raw", "ours"):  # there, compiling counts
            few = corpus.Corpus(text.words, text.counts, text.ids[: BATCH * Pieces.PIECE], text.total)
            ours(few, 16, options.threads, 1)
        if options.what == "ours":
            rate, method = ours(text, options.dimension, options.threads, EPOCHS, options.seeds[0])
            if PartialState().is_main_process:
                print(bounded_json.dumps({"words_per_second": rate} | word_similarity.evaluate(method.keyed_vectors())))
            return
        if options.what == "peak":
            rate, method = ours(text, options.dimension, options.threads, 1)
            flops = 6 * (1 + NEGATIVE) * options.dimension * pairs_per_word(method, text) * rate
            best = peak(options.threads)
            print(f"{rate:,.0f} words/s, {flops / 1e9:.1f} of {best / 1e9:.1f} GFLOP/s: {flops / best:.0%} of peak")
            return
        for i in range(options.pairs if options.what != "quality" else len(options.seeds)):
            if options.what == "quality":
                run = quality(options, file, text, options.seeds[i])
            else:
                run = (speed if options.what == "speed" else raw)(options, file, text)
                if options.what == "speed":
                    run |= whole(options, file, Path(place))
            runs.append({"what": options.what, "dimension": options.dimension, "threads": options.threads} | run)
            print(bounded_json.dumps(runs[-1]), flush=True)
            if options.results:
                with open(options.results, "a") as f:
                    f.write(bounded_json.dumps(runs[-1]) + "\n")
    if options.results:
        every = [json.loads(line) for line in Path(options.results).read_text().splitlines()]
        runs = [run for run in every if all(run[k] == runs[-1][k] for k in ("what", "dimension", "threads"))]
    if options.what == "quality":
        for how in (name for name in runs[0] if name.startswith("same")):
            print(f"{how}; mean of {len(runs)} seeds")
            for name in runs[0][how]["ours"]:
                mean = {who: statistics.mean(run[how][who][name] for run in runs) for who in ("ours", "gensim")}
                difference = mean["ours"] - mean["gensim"]
                print(f"{name:24} ours {mean['ours']:.4f}  gensim {mean['gensim']:.4f}  {difference:+.4f}")
    else:
        for name, what in (("ratio", "times gensim"), ("whole_ratio", "times gensim, process start to process end"),
                           ("whole_ours_seconds", "s, ours"), ("whole_gensim_seconds", "s, gensim")):  # fmt: skip
            if values := [run[name] for run in runs if name in run]:
                spread = f"({min(values):.2f} to {max(values):.2f})"
                print(f"median of {len(values)}: {statistics.median(values):.2f} {spread} {what}")


def pairs_per_word(method: Word2Vec, text: corpus.Corpus) -> float:
    """Pairs of centre and context word for each word of the text, after subsampling; counted on a part."""
    ids = text.ids[:200_000]
    contexts, _ = windows(method._draw(ids, 0), method.window, method.negative)
    return float((contexts >= 0).sum()) / float((ids >= 0).sum())


if __name__ == "__main__":
    main()
