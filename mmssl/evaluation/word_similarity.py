"""Evaluation of word vectors: word similarity, analogies, nearest neighbours, and a probe for social bias.

python -m mmssl.evaluation.word_similarity --vectors runs/word2vec        (or any word2vec file)

WordSim-353 (Finkelstein et al. 2002), SimLex-999 (Hill et al. 2015) and the Google analogies (Mikolov et al. 2013) come
with gensim. Pairs with an unknown word are left out. Because a score over few pairs is not comparable, the coverage
(fraction of pairs used) is given with every score.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmssl import figures
from mmssl.arguments import Flags, command, flag
from mmssl.evaluation.held_out import Columns, Evaluation
from mmssl.plain_text import markdown, say, say_markdown

if TYPE_CHECKING:
    from gensim.models import KeyedVectors


SIMILARITY = {"WordSim-353": "wordsim353.tsv", "SimLex-999": "simlex999.txt"}
ANALOGIES = "questions-words.txt"
MOST_FREQUENT = 300_000  # words that answers to analogies are chosen from, as in gensim
AT_ONCE = 512  # words that all unanswered questions are compared with in one matrix product

# Caliskan et al. 2017 (arXiv:1608.07187), tests 6, 8 and 1: careers, family, science and arts against gender; for
# comparison, flowers and insects against pleasant and unpleasant words, a harmless bias
WEAT = {
    "career against family, male against female": (
        "executive management professional corporation salary office business career",
        "home parents children family cousins marriage wedding relatives",
        "male man boy brother he him his son",
        "female woman girl sister she her hers daughter",
    ),
    "science against arts, male against female": (
        "science technology physics chemistry einstein nasa experiment astronomy",
        "poetry art shakespeare dance literature novel symphony drama",
        "brother father uncle grandfather son he his him",
        "sister mother aunt grandmother daughter she hers her",
    ),
    "flowers against insects, pleasant against unpleasant": (
        "aster clover hyacinth marigold poppy iris orchid rose daffodil lilac tulip daisy lily violet",
        "ant caterpillar flea locust spider bedbug centipede fly maggot mosquito beetle cricket roach moth wasp",
        "freedom health love peace friend heaven loyal pleasure honest gentle lucky happy laughter paradise",
        "abuse crash filth murder sickness accident death grief poison stink assault disaster hatred ugly",
    ),
}
OCCUPATIONS = [  # from the list of Bolukbasi et al. 2016 (arXiv:1607.06520)
    "nurse", "teacher", "librarian", "secretary", "dancer", "singer", "housekeeper", "maid", "engineer", "captain",
    "soldier", "judge", "doctor", "lawyer", "carpenter", "architect", "philosopher", "boss",
]  # fmt: skip


class WordVectors(Evaluation):
    """Similarity and analogy scores, times 100; neighbours, a probe for social bias and a map of frequent words."""

    units = "Times 100: Spearman's rho, accuracy, fraction of pairs covered."
    ASKED = ("king", "war", "music", "water", "city")

    def __init__(self, words: list[str]) -> None:
        """words: the vocabulary, most frequent first."""
        self.words, known = words, set(words)
        self.asked = [word for word in self.ASKED if word in known] or words[100:105] or words[:5]

    def __call__(self, method) -> dict[str, float]:
        return {name: 100 * value for name, value in evaluate(method.keyed_vectors()).items()}

    def draw(self, method, directory: Path, results: Columns) -> dict[str, str]:
        figures.word_map(method.keyed_vectors(), self.words[50:350] or self.words, directory / "map.png")
        return {"map.png": "Frequent words in the plane of their vectors' first two principal components."}

    def text(self, method) -> str:
        vectors = method.keyed_vectors()
        near = neighbours(vectors, self.asked)
        lines = [f"- {markdown(word)}: {markdown(', '.join(words))}" for word, words in near.items()]
        return "Nearest words:\n\n" + "\n".join(lines) + "\n\n" + bias_report(vectors)


def evaluate(vectors: KeyedVectors) -> dict[str, float]:
    """Spearman's rho for the similarity tests, accuracy for the analogies, and the coverage of each; all in [-1, 1]."""
    from gensim.test.utils import datapath

    results = {}
    for name, file in SIMILARITY.items():
        try:
            _, (rho, _), missing = vectors.evaluate_word_pairs(datapath(file), case_insensitive=True)
        except ValueError:  # raised by gensim if no pair is known
            rho, missing = float("nan"), 100
        results[name], results[f"{name} coverage"] = float(rho), 1 - missing / 100
    correct, asked, questions = analogies(vectors)
    results["analogies"] = correct / asked if asked else float("nan")
    results["analogies coverage"] = asked / questions
    return results


def analogies(vectors: KeyedVectors) -> tuple[int, int, int]:
    """(right answers, questions with known words, all questions). "a is to b as c is to ?" is answered by the word
    nearest to b - a + c, except a, b and c (3CosAdd). Gives the same answers as gensim's evaluate_word_analogies.

    An answer is right if no word is nearer than the expected one. A question is compared with one block of words after
    another, most frequent first, until a nearer word is found; for most questions this happens early.
    """
    from gensim.test.utils import datapath

    words = vectors.index_to_key[:MOST_FREQUENT]
    row = {word.upper(): i for i, word in reversed(list(enumerate(words)))}
    text = Path(datapath(ANALOGIES)).read_text().upper()
    questions = [line.split() for line in text.splitlines() if not line.startswith(":")]
    known = [[row[word] for word in question] for question in questions if all(word in row for word in question)]
    asked = np.array(known, np.int64).reshape(-1, 4)
    unit = unit_length(vectors.vectors[: len(words)])
    a, b, c, expected = asked.T
    query = unit[b] - unit[a] + unit[c]
    best = (query * unit[expected]).sum(1)
    # questions without a nearer word so far; a question's own words are never the answer
    open_ = np.flatnonzero((asked[:, :3] != expected[:, None]).all(1))
    for start in range(0, len(words), AT_ONCE):
        score = query[open_] @ unit[start : start + AT_ONCE].T
        place = asked[open_] - start
        rows, columns = np.nonzero((place >= 0) & (place < score.shape[1]))
        score[rows, place[rows, columns]] = -np.inf  # skip the question's words and the expected one
        open_ = open_[score.max(1) < best[open_]]
    return len(open_), len(asked), len(questions)


def neighbours(vectors: KeyedVectors, words: list[str], k: int = 6) -> dict[str, list[str]]:
    """The k nearest words of each known word."""
    return {w: [near for near, _ in vectors.most_similar(w, topn=k)] for w in words if w in vectors}


def weat(vectors: KeyedVectors, targets: tuple[list[str], list[str]], attributes: tuple[list[str], list[str]]) -> float:
    """WEAT's effect size (Caliskan et al. 2017), between -2 and 2: how much closer the first targets are to the first
    attributes, and the second to the second, in standard deviations. NaN if a list has fewer than two known words."""
    known = [[word for word in group if word in vectors] for group in (*targets, *attributes)]
    if min(map(len, known)) < 2:
        return float("nan")
    x, y, a, b = (unit_length(vectors[group]) for group in known)
    leaning = [(t @ a.T).mean(1) - (t @ b.T).mean(1) for t in (x, y)]
    return float((leaning[0].mean() - leaning[1].mean()) / np.concatenate(leaning).std(ddof=1))


def gender_leaning(vectors: KeyedVectors, words: list[str] = OCCUPATIONS) -> dict[str, float]:
    """Cosine of each word with she - he (Bolukbasi et al. 2016); positive means closer to "she". {} without both."""
    if "she" not in vectors or "he" not in vectors:
        return {}
    direction = unit_length(unit_length(vectors["she"][None]) - unit_length(vectors["he"][None]))[0]
    leaning = {w: float(unit_length(vectors[w][None])[0] @ direction) for w in words if w in vectors}
    return dict(sorted(leaning.items(), key=lambda item: item[1]))


def bias_report(vectors: KeyedVectors) -> str:
    """The results of the bias probe as text, for the model card."""
    sizes = {name: weat(vectors, *_groups(lists)) for name, lists in WEAT.items()}
    lines = ["Word vectors repeat the prejudices of their training text. WEAT effect sizes, from -2 to 2 (0: no bias):"]
    lines += [f"- {name}: {size:.2f}" for name, size in sizes.items() if size == size]
    leaning = list(gender_leaning(vectors).items())
    if leaning:
        he, she = leaning[:4], leaning[:-5:-1]
        lines.append(
            "- occupations closest to *he*: " + ", ".join(f"{w} {v:+.2f}" for w, v in he)
            + "; to *she*: " + ", ".join(f"{w} {v:+.2f}" for w, v in she)
        )  # fmt: skip
    return "\n".join(lines) + "\n\nDo not use them to make decisions about people."


def unit_length(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _groups(lists: tuple[str, str, str, str]) -> tuple[tuple[list[str], list[str]], tuple[list[str], list[str]]]:
    x, y, a, b = (words.split() for words in lists)
    return (x, y), (a, b)


@dataclass
class WordSimilarityArgs(Flags):
    vectors: str = flag("runs/word2vec", "a run of recipes/word2vec.py, its Hub id, or a word2vec file")


def main(args: WordSimilarityArgs) -> None:
    from mmssl.models.word_vectors import load

    loaded, _ = load(args.vectors)
    for measure, value in evaluate(loaded).items():
        say(f"{measure:24} {value:.3f}")
    say_markdown(bias_report(loaded))


if __name__ == "__main__":
    command(main, WordSimilarityArgs, __doc__)
