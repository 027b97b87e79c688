"""k-nearest-neighbour classification: measures features without training anything on top of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

NEIGHBOURS = 20
TEMPERATURE = 0.07  # Wu et al. 2018, section 3.4

if TYPE_CHECKING:
    from scipy import sparse

    Matrix = np.ndarray | sparse.csr_matrix


def knn(
    train: Matrix,
    label: np.ndarray,
    test: Matrix,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> np.ndarray:
    """(test examples,) the class with the most votes among the k nearest by cosine; a vote weighs exp(cosine /
    temperature) (Wu et al. 2018, arXiv:1805.01978, section 3.4). Ties go to the first class.

    train, test: (examples, width), dense or sparse. label: (training examples,), from 0.
    """
    from scipy import sparse

    train, test = unit_rows(train), unit_rows(test)
    k, classes = min(k, train.shape[0]), int(label.max()) + 1
    predicted = []
    for first in range(0, test.shape[0], 1024):
        similarity = test[first : first + 1024] @ train.T
        similarity = similarity.toarray() if sparse.issparse(similarity) else similarity
        nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        # minus 1, the largest cosine: a float32 sum of values as large as exp(1 / 0.07) would lose digits
        weight = np.exp((np.take_along_axis(similarity, nearest, 1) - 1) / temperature)
        votes = np.zeros((len(similarity), classes))
        np.add.at(votes, (np.arange(len(similarity))[:, None], label[nearest]), weight)
        predicted.append(votes.argmax(1))
    return np.concatenate(predicted)


def unit_rows(x: Matrix) -> Matrix:
    """Rows scaled to length 1; rows of zeros stay zero."""
    import scipy.sparse.linalg
    from scipy import sparse

    if sparse.issparse(x):
        return sparse.diags_array(1 / np.maximum(scipy.sparse.linalg.norm(x, axis=1), 1e-12)) @ x
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
