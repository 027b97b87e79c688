"""Who helps whom: affinities of encoders (sources) to labelled tasks (targets), and the best few sources for all tasks.

Taskonomy, Zamir et al. 2018, arXiv:1804.08328, section 3.3: losses of different tasks cannot be compared, but on each
held-out example it is known which of two sources has the smaller one. The shares of wins of all pairs become one number
per source, as in the analytic hierarchy process. Then an integer programme chooses sources under a budget (section
3.4). Differs: transfers have one source; the transfer is a linear probe.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmssl import figures
from mmssl.hub.table import aligned

CLIP = 0.001, 0.999  # of a share of wins, section 3.3: a ratio of shares stays finite


def win_shares(losses: np.ndarray) -> np.ndarray:
    """(sources, sources): the share of the examples on which source i has a smaller loss than source j; ties count
    half. losses: (sources, examples)."""
    smaller = np.stack([(each < losses).mean(1) + 0.5 * (each == losses).mean(1) for each in losses])
    return smaller.astype(np.float64)


def affinity(losses: np.ndarray) -> np.ndarray:
    """(sources,), of sum 1: the principal eigenvector of W / W^T, with W the clipped shares of wins on one target.
    losses: (sources, examples)."""
    shares = win_shares(losses).clip(*CLIP)
    values, vectors = np.linalg.eig(shares / shares.T)
    principal = np.abs(vectors[:, values.real.argmax()].real)  # of a positive matrix it has one sign
    return principal / principal.sum()


def best_sources(affinities: np.ndarray, budget: int) -> tuple[list[int], list[int]]:
    """(the sources, at most `budget`; the source of each target) with the largest sum of affinities over the targets.
    affinities: (sources, targets)."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    sources, targets = affinities.shape
    # variables: whether source i is used; then whether it is the source of target j, row after row
    gain = np.concatenate([np.zeros(sources), affinities.ravel()])
    each = np.eye(targets)
    one_source = np.hstack([np.zeros((targets, sources)), np.tile(each, sources)])
    is_used = np.hstack([np.repeat(np.eye(sources), targets, axis=0), -np.eye(sources * targets)])
    within = np.concatenate([np.ones(sources), np.zeros(sources * targets)])
    found = milp(
        -gain,
        constraints=[
            LinearConstraint(one_source, 1, 1),
            LinearConstraint(is_used, 0, np.inf),
            LinearConstraint(within[None], 0, budget),
        ],
        bounds=Bounds(0, 1),
        integrality=np.ones(len(gain)),
    )
    chosen = found.x[sources:].reshape(sources, targets).argmax(0).tolist()
    return sorted(set(chosen)), chosen


def order(rows: np.ndarray) -> list[int]:
    """An order in which similar rows are neighbours: the leaves of their hierarchical clustering. rows: (n, width)."""
    from scipy.cluster.hierarchy import leaves_list, linkage

    if len(rows) < 3:
        return list(range(len(rows)))
    return leaves_list(linkage(rows, "average", optimal_ordering=True)).tolist()


@dataclass
class Choice:
    """The sources chosen under a budget. of_target: the source of each target. loss: the mean over targets, in nats, on
    examples that the choice has not seen. per_seed: the sources that each draw of labels alone would choose."""

    sources: list[int]
    of_target: list[int]
    loss: float
    per_seed: list[list[int]]


@dataclass
class Study:
    """affinities: (sources, targets), each column of sum 1. per_seed: (seeds, sources, targets), those of each draw of
    labels. choices: for the budgets 1, 2, .... references: losses without a choice, in nats, of the same examples."""

    affinities: np.ndarray
    per_seed: np.ndarray
    choices: list[Choice]
    references: dict[str, float]

    def text(self, sources: list[str], targets: list[str]) -> str:
        """The affinities and the choices as lines to print."""
        spread = self.per_seed.std(0, ddof=1) if len(self.per_seed) > 1 else None
        rows = {
            name: [f"{a:.3f}" + ("" if spread is None else f" ± {s:.3f}") for a, s in zip(*both, strict=True)]
            for name, both in zip(
                sources, zip(self.affinities, self.affinities if spread is None else spread, strict=True), strict=True
            )
        }
        shown = ["", f"Affinities, ± deviation over seeds; {1 / len(sources):.3f} if all sources were alike"]
        shown += [printed(rows, targets), "", "Loss on examples that the choice has not seen, mean over tasks, nats"]
        for budget, choice in enumerate(self.choices, start=1):
            helped = (f"{target} from {sources[i]}" for target, i in zip(targets, choice.of_target, strict=True))
            shown.append(f"budget {budget}: {choice.loss:.3f}, {', '.join(helped)}")
            each = (f"{seed}: {', '.join(sources[i] for i in own)}" for seed, own in enumerate(choice.per_seed))
            shown.append(f"    chosen by each seed alone: {'; '.join(each)}")
        shown += [f"{name}: {loss:.3f}" for name, loss in self.references.items()]
        return "\n".join(shown)

    def content(self) -> dict:
        """For a JSON file."""
        return {
            "affinities": self.affinities.tolist(),
            "affinities_of_each_seed": self.per_seed.tolist(),
            "choices": [vars(choice) for choice in self.choices],
            "losses_without_a_choice": self.references,
        }

    def draw(self, sources: list[str], targets: list[str], file: Path) -> None:
        """The matrix, similar rows and columns beside each other, and the graph of the last choice."""
        rows, columns = order(self.affinities), order(self.affinities.T)
        figures.affinities(
            self.affinities[rows][:, columns],
            [sources[i] for i in rows],
            [targets[j] for j in columns],
            [rows.index(self.choices[-1].of_target[j]) for j in columns],
            file,
        )


def study(losses: list[np.ndarray], untrained: list[np.ndarray], budget: int) -> Study:
    """losses: for each target, (sources, seeds, test examples). untrained: (seeds, test examples), of an encoder before
    training. Affinities are taken, and sources chosen, on one half of the examples; losses are those of the other."""
    halves = [np.random.default_rng(0).permutation(each.shape[2]) for each in losses]
    chosen_on = [each[..., half[: len(half) // 2]] for each, half in zip(losses, halves, strict=True)]
    other = [each[..., half[len(half) // 2 :]] for each, half in zip(losses, halves, strict=True)]
    before = [each[..., half[len(half) // 2 :]].mean() for each, half in zip(untrained, halves, strict=True)]
    seeds = min(each.shape[1] for each in losses)  # all labels are drawn in one way only

    def matrix(of_targets: list[np.ndarray]) -> np.ndarray:
        return np.stack([affinity(each.reshape(len(each), -1)) for each in of_targets], axis=1)

    whole = matrix(chosen_on)
    per_seed = np.stack([matrix([each[:, seed : seed + 1] for each in chosen_on]) for seed in range(seeds)])
    mean = np.stack([each.mean((1, 2)) for each in other], axis=1)  # (sources, targets)
    choices = []
    for most in range(1, min(budget, len(whole)) + 1):
        found, of_target = best_sources(whole, most)
        loss = float(mean[of_target, range(len(of_target))].mean())
        choices.append(Choice(found, of_target, loss, [best_sources(own, most)[0] for own in per_seed]))
    references = {"the average source": float(mean.mean()), "an encoder before training": float(np.mean(before))}
    return Study(whole, per_seed, choices, references | {"the best of each task": float(mean.min(0).mean())})


def printed(rows: dict[str, list], columns: list[str]) -> str:
    """A table as lines to print. rows: name -> a number or a text for each column."""
    cells = {name: [c if isinstance(c, str) else f"{c:.1f}" for c in values] for name, values in rows.items()}
    return aligned(columns, cells)
