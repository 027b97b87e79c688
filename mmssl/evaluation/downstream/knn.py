"""k-nearest-neighbour classification: what features are worth with nothing learned on top."""

from __future__ import annotations

import numpy as np
from scipy import sparse

NEIGHBOURS = 20
TEMPERATURE = 0.07  # Wu et al. 2018, section 3.4

Matrix = np.ndarray | sparse.csr_matrix


def knn(
    train: Matrix,
    label: np.ndarray,
    test: Matrix,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    classes: int | None = None,
) -> np.ndarray:
    """(test examples,) the class with most votes of the k nearest by cosine, each vote weighing exp(cosine /
    temperature) (Wu et al. 2018, arXiv:1805.01978, section 3.4). Of classes with equal votes the first.

    train, test: (examples, width), dense or sparse. label: (training examples,), from 0.
    """
    train, test = unit_rows(train), unit_rows(test)
    k, classes = min(k, train.shape[0]), classes or int(label.max()) + 1
    predicted = []
    for first in range(0, test.shape[0], 1024):
        similarity = test[first : first + 1024] @ train.T
        similarity = similarity.toarray() if sparse.issparse(similarity) else similarity
        nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        # minus 1, the largest cosine: exp(1 / 0.07) is more than a float32 sum keeps its digits for
        weight = np.exp((np.take_along_axis(similarity, nearest, 1) - 1) / temperature)
        votes = np.zeros((len(similarity), classes))
        np.add.at(votes, (np.arange(len(similarity))[:, None], label[nearest]), weight)
        predicted.append(votes.argmax(1))
    return np.concatenate(predicted)


def unit_rows(x: Matrix) -> Matrix:
    """Rows of length 1; rows of zeros stay."""
    import scipy.sparse.linalg

    if sparse.issparse(x):
        return sparse.diags_array(1 / np.maximum(scipy.sparse.linalg.norm(x, axis=1), 1e-12)) @ x
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
