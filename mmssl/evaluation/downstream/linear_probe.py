"""Linear probe: scikit-learn's logistic regression on frozen features, its regularisation chosen on training data."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from mmssl.plain_text import say

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline

    from mmssl.evaluation.downstream.knn import Matrix


CS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # inverse regularisation strengths, for features of unit deviation
VALIDATION = 0.2  # fraction of the training labels on which the strength is chosen
MAX_ITERATIONS = 2000
LEAST_LIKELY = 1e-12
TOLERANCE = 1e-6  # converged when no component of the gradient of the mean loss is larger


def linear_probe(train: Matrix, label: np.ndarray, test: Matrix, seed: int = 0) -> np.ndarray:
    """(test examples,) predicted classes. train, test: (examples, width), dense or sparse. label: (training
    examples,)."""
    return fit(train, label, seed).predict(test)


def fit(train: Matrix, label: np.ndarray, seed: int = 0) -> Pipeline:
    """A scaler to unit deviation over the training data, and a LogisticRegression. Its strength is the best one on a
    fifth of the training data; it is then fitted on all. train: (examples, width), dense or sparse. label: (examples,).

    With fewer than five labels in a class there is no validation part, and C is 1 / width. Warns if the solver did not
    converge.
    """
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler(with_mean=not hasattr(train, "tocsr"))
    train = scaler.fit_transform(train)
    c = choose_c(train, label, seed) if np.bincount(label)[np.unique(label)].min() >= 5 else 1 / train.shape[1]
    return make_pipeline(scaler, _fit(train, label, c))


def losses(probe: Pipeline, test: Matrix, label: np.ndarray) -> np.ndarray:
    """(test examples,) float32: the cross entropy of each true class. A class that the probe does not know has the
    probability of LEAST_LIKELY. test: (examples, width). label: (examples,)."""
    likely = np.full((len(label), int(max(label.max(), probe.classes_.max())) + 1), LEAST_LIKELY)
    likely[:, probe.classes_] = probe.predict_proba(test)
    return -np.log(likely[np.arange(len(label)), label].clip(min=LEAST_LIKELY)).astype(np.float32)


def choose_c(train: Matrix, label: np.ndarray, seed: int) -> float:
    """The best C, the smallest one if several are equally good. Fits from strong to weak regularisation, each starting
    from the previous solution."""
    from sklearn.model_selection import train_test_split

    rows, held = train_test_split(np.arange(len(label)), test_size=VALIDATION, stratify=label, random_state=seed)
    model, scores = None, []
    for c in CS:
        model = _fit(train[rows], label[rows], c, model)
        scores.append(model.score(train[held], label[held]))
        if len(scores) > 2 and scores[-1] < scores[-2] < scores[-3]:
            break  # the best one is passed, and the weakest take longest
    return CS[int(np.argmax(scores))]


def _fit(x: Matrix, y: np.ndarray, c: float, begin: LogisticRegression | None = None) -> LogisticRegression:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    model = LogisticRegression(C=c, tol=TOLERANCE, max_iter=MAX_ITERATIONS, warm_start=begin is not None)
    if begin is not None:
        model.coef_, model.intercept_, model.classes_ = begin.coef_.copy(), begin.intercept_.copy(), begin.classes_
    # products with so few columns as there are classes: several threads take up to four times as long as one
    with threadpool_limits(limits=1, user_api="blas"), warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(x, y)
    if raised:
        say(f"warning: the linear probe with C {c} had not converged after {MAX_ITERATIONS} iterations")
    return model
