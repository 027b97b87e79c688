"""How well the cosine of two sentences' vectors agrees with how similar the sentences are.

Spearman's rank correlation over scored pairs, as for the STS tasks; alignment and uniformity of the vectors (Wang &
Isola 2020, arXiv:2005.10242). Pairs come from a table (STS-B, SICK), or are made from held-out documents: neighbouring
sentences of a document against sentences of different documents, or, where a document is one sentence, the halves of a
sentence against halves of different ones. The latter measures whether two sentences are of one topic, which is
something else than a person's judgement of how alike their meanings are.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.data import columns
from mmssl.data.text.tokens import Tokens
from mmssl.errors import BadInput, first_line
from mmssl.evaluation.finite import finite
from mmssl.evaluation.held_out import Columns, Evaluation
from mmssl.methods.simcse import mean
from mmssl.plain_text import markdown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mmssl.methods.simcse import SimCSE

FIRST = ("sentence1", "sentence_1", "sentence_A", "text1", "first")
SECOND = ("sentence2", "sentence_2", "sentence_B", "text2", "second")
SCORE = ("score", "relatedness_score", "similarity_score", "similarity", "label", "labels")
STS_BENCHMARK = (5, 6, 4)  # columns of its files, which have no header
MOST = 1000  # pairs of neighbours, sentences whose uniformity is measured
ALIKE = 0.8  # pairs in the top fifth of the range of scores are the positive ones of the alignment: 4 to 5 in STS-B
SHOWN = 5


@dataclass(frozen=True)
class Pairs:
    """first, second: sentences. score: (pairs,), how similar they are. origin: what they are, in words."""

    first: Sequence[str]
    second: Sequence[str]
    score: np.ndarray
    origin: str

    @property
    def alike(self) -> np.ndarray:
        """(pairs,) bool: the positive pairs."""
        low, high = self.score.min(), self.score.max()
        return self.score >= low + ALIKE * (high - low)


def neighbours(documents: Sequence[Sequence[str]], seed: int = 0) -> Pairs:
    """Pairs of a sentence and the next one (score 1), and as many of the same sentences and one of another document
    (score 0). Where each document is a single sentence, its halves take the place of sentences. documents: the
    sentences of each. Raises BadInput if there are not two documents, one with two sentences or words."""
    kind = "neighbouring sentences and as many of sentences of different documents"
    if max(map(len, documents), default=0) < 2:
        documents = [_halves(sentence) for sentences in documents for sentence in sentences]
        kind = "halves of a sentence and as many of halves of different sentences"
    at = [(d, i) for d, sentences in enumerate(documents) for i in range(len(sentences) - 1)]
    if not at or sum(map(bool, documents)) < 2:
        raise BadInput(
            "fewer than two held-out documents have sentences that can be compared: hold out more of them with "
            "--held_out, or give scored pairs with --sts_file"
        )
    rng = np.random.default_rng(seed)
    every = [(d, sentence) for d, sentences in enumerate(documents) for sentence in sentences]
    first, second, score = [], [], []
    for n in rng.permutation(len(at))[:MOST]:
        d, i = at[n]
        other, sentence = d, ""
        while other == d:
            other, sentence = every[rng.integers(len(every))]
        first += 2 * [documents[d][i]]
        second += [documents[d][i + 1], sentence]
        score += [1.0, 0.0]
    return Pairs(first, second, np.array(score), f"{len(first) // 2:,} pairs of {kind}")


def _halves(sentence: str) -> list[str]:
    words = sentence.split()
    parts = words[: len(words) // 2], words[len(words) // 2 :]
    return [" ".join(part) for part in parts] if len(words) > 1 else [sentence]


def read_pairs(file: str) -> Pairs:
    """The pairs of a table with a header (CSV, TSV, Parquet), under the column names of STS-B or SICK, or of the STS
    benchmark's own files. Rows without a number or a sentence are left out and counted. Raises BadInput."""
    rows, header = _table(Path(file).expanduser(), f"--sts_file {file}")
    named = [next((header.index(name) for name in usual if name in header), None) for usual in (FIRST, SECOND, SCORE)]
    if None in named and len(header) > max(STS_BENCHMARK) and _number(header[STS_BENCHMARK[2]]) is not None:
        named, rows = list(STS_BENCHMARK), [header, *rows]
    if None in named:
        lacks = (FIRST, SECOND, SCORE)[named.index(None)]
        raise BadInput(
            f"--sts_file {file}: none of its columns {', '.join(map(str, header))} is called {' or '.join(lacks)}; "
            "rename the columns"
        )
    found, faulty = [], []
    for line, row in enumerate(rows, start=1):
        one, two, score = (row[i] if i < len(row) else None for i in named)
        value, both = _number(score), isinstance(one, str) and isinstance(two, str)
        if both and one.strip() and two.strip() and value is not None:
            found.append((one, two, value))
        else:
            faulty.append(f"row {line}: {one!r}, {two!r}, {score!r}"[:200])
    columns.report_unusable({"pairs without two sentences and a finite score": faulty}, len(rows))
    first, second, scores = zip(*found, strict=True)
    if len(set(scores)) < 2:
        raise BadInput(f"--sts_file {file}: all scores are {scores[0]}: nothing to correlate with")
    return Pairs(first, second, np.array(scores), f"{len(first):,} scored pairs of {Path(file).name}")


def _table(file: Path, flag: str) -> tuple[list[Sequence], list[str]]:
    """(rows, header)."""
    if not file.is_file():
        raise BadInput(f"{flag}: no such file")
    try:
        if file.suffix == ".parquet":
            from pyarrow import parquet

            table = parquet.read_table(file)
            return list(zip(*(c.to_pylist() for c in table.columns), strict=True)), table.column_names
        with open(file, encoding="utf-8-sig", newline="") as lines:
            tabs = "\t" in lines.readline()
            lines.seek(0)
            # quotes mean nothing in the tables with tabs that STS tasks are published as
            read = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(lines)
            header, *rows = [row for row in read if row] or [[]]
            return rows, header
    except (OSError, ValueError, csv.Error) as error:  # Arrow's errors are ValueErrors
        raise BadInput(f"{flag} could not be read as CSV, TSV or Parquet: {first_line(error)}") from error


def _number(value) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def alignment(first: Tensor, second: Tensor) -> float:
    """Mean squared distance of positive pairs, 0 (best) to 4. first, second: (pairs, dim), of unit length."""
    return (first - second).square().sum(1).mean().item()


def uniformity(vectors: Tensor) -> float:
    """log of the mean of exp(-2 d^2) over pairs; lower is better, 0 if all are equal. vectors: (n, dim), of unit
    length."""
    return torch.pdist(vectors).square().mul(-2).exp().mean().log().item()


class SentenceSimilarity(Evaluation):
    """
    pairs:     scored pairs. sentences: held-out ones, whose uniformity is measured (at most MOST).
    method:    before training: the mean of its word embeddings is a baseline.
    """

    def __init__(
        self,
        pairs: Pairs,
        sentences: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        method: SimCSE,
        batch_size: int = 64,
    ) -> None:
        self.pairs, self.held_out, self.batch_size = pairs, list(dict.fromkeys(sentences))[:MOST], batch_size
        every = list(dict.fromkeys([*pairs.first, *pairs.second, *self.held_out]))
        self.tokens, self.row = Tokens(every, tokenizer, method.max_length), {s: i for i, s in enumerate(every)}
        self.units = (
            f"{pairs.origin}. Spearman's rho of cosine and score times 100, chance 0. Alignment: mean squared distance "
            "of similar sentences' vectors, 0 to 4; uniformity: log of the mean of exp(-2 d^2); lower is "
            "better for both, and each is easy at the cost of the other."
        )
        table = method.encoder.get_input_embeddings()

        def mean_of_words(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return mean(table(input_ids), attention_mask)

        with torch.no_grad():
            self.words = self._results(self._vectors(mean_of_words, table.weight.device))

    @torch.no_grad()
    def __call__(self, method: SimCSE) -> dict[str, float]:
        return self._results(self._vectors(method.represent, method.encoder.device))

    def baselines(self, method: SimCSE) -> Columns:
        """The mean of the word embeddings before training, and tf-idf fitted on these sentences."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        rows = TfidfVectorizer().fit_transform(self.row)  # of unit length
        first, second = (rows[[self.row[s] for s in side]] for side in (self.pairs.first, self.pairs.second))
        cosine = np.asarray(first.multiply(second).sum(1))[:, 0]
        return {"word embeddings before": self.words, "tf-idf": {"spearman": 100 * spearman(cosine, self.pairs.score)}}

    @torch.no_grad()
    def text(self, method: SimCSE) -> str:
        """Held-out sentences, each with the nearest other one."""
        vectors = self._vectors(method.represent, method.encoder.device)
        here = vectors[[self.row[s] for s in self.held_out]]
        similarity = (here[:SHOWN] @ here.T).fill_diagonal_(-1)
        best, place = similarity.max(1)
        lines = [
            f"- {markdown(self.held_out[i])} → {markdown(self.held_out[j])} ({cosine:.2f})"
            for i, (cosine, j) in enumerate(zip(best.tolist(), place.tolist(), strict=True))
        ]
        return "Held-out sentences, and the nearest other held-out sentence with its cosine:\n\n" + "\n".join(lines)

    def _vectors(self, represent, device: torch.device) -> Tensor:
        """(sentences, dim) fp32 on the CPU, of unit length."""
        parts = []
        for rows in torch.arange(len(self.tokens)).split(self.batch_size):
            batch = {name: value.to(device) for name, value in self.tokens[rows].items()}
            parts.append(represent(**batch).float().cpu())
        return F.normalize(finite(torch.cat(parts), "vectors of sentences"), dim=1)

    def _results(self, vectors: Tensor) -> dict[str, float]:
        first, second = (vectors[[self.row[s] for s in side]] for side in (self.pairs.first, self.pairs.second))
        alike = torch.from_numpy(self.pairs.alike)
        results = {"spearman": 100 * spearman((first * second).sum(1).numpy(), self.pairs.score)}
        results["alignment"] = alignment(first[alike], second[alike])
        if len(self.held_out) > 1:
            results["uniformity"] = uniformity(vectors[[self.row[s] for s in self.held_out]])
        return results


def spearman(cosine: np.ndarray, score: np.ndarray) -> float:
    """Spearman's rank correlation; 0 where all cosines are equal, which rank nothing."""
    from scipy.stats import spearmanr

    return float(spearmanr(cosine, score).statistic) if np.ptp(cosine) > 0 else 0.0
