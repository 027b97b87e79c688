"""k-NN, linear probe and few-shot against independent implementations, and against answers known beforehand."""

import numpy as np
import pytest
import scipy.sparse
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, PredefinedSplit, train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_info

from mmssl.errors import BadInput
from mmssl.evaluation.downstream import linear_probe as probe
from mmssl.evaluation.downstream.few_shot import few_shot
from mmssl.evaluation.downstream.knn import knn


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = x[order], y[order]
    return x[:1200], y[:1200], x[1200:], y[1200:]


@pytest.mark.parametrize("k", [1, 5, 20])
def test_knn_is_that_of_scikit_learn(digits, k):
    train, label, test, _ = digits
    theirs = KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp(-distance / 0.07))
    assert np.array_equal(knn(train, label, test, k), theirs.fit(train, label).predict(test))


def test_knn_of_sparse_features_is_that_of_dense_ones(digits):
    train, label, test, _ = digits
    sparse = [scipy.sparse.csr_matrix(part) for part in (train, test)]
    assert np.array_equal(knn(sparse[0], label, sparse[1]), knn(train, label, test))


def test_knn_looks_at_no_more_neighbours_than_there_are():
    assert knn(np.eye(3), np.array([2, 0, 1]), np.eye(3)).tolist() == [2, 0, 1]


def test_the_linear_probe_agrees_with_another_solver_and_search_of_scikit_learn_to_half_a_point(digits):
    train, label, test, expected = digits
    single = (train.astype(np.float32), label, test.astype(np.float32))  # what encoders give
    ours = 100 * (probe.linear_probe(*single) == expected).mean()
    _, held = train_test_split(np.arange(len(label)), test_size=0.2, stratify=label, random_state=0)
    split = PredefinedSplit([0 if row in set(held) else -1 for row in range(len(label))])
    scaler = StandardScaler().fit(train)
    search = GridSearchCV(LogisticRegression(solver="newton-cg", tol=1e-6), {"C": probe.CS}, cv=split)
    theirs = search.fit(scaler.transform(train), label).score(scaler.transform(test), expected)
    assert ours == pytest.approx(100 * theirs, abs=0.5)


def test_the_linear_probe_has_converged(digits):
    """Its loss is the smallest there is: a solver a hundred times as patient finds no smaller one."""
    train, label, _, _ = digits
    x = StandardScaler().fit_transform(train)

    def loss(model):
        p = model.predict_proba(x)[np.arange(len(x)), label]
        return -np.log(p).sum() + (model.coef_**2).sum() / (2 * 0.01)

    patient = LogisticRegression(C=0.01, tol=1e-8, max_iter=100_000).fit(x, label)
    assert loss(probe._fit(x, label, 0.01)) == pytest.approx(loss(patient), rel=1e-4)


def test_a_solver_that_stops_early_is_said(digits, monkeypatch, capsys):
    monkeypatch.setattr(probe, "MAX_ITERATIONS", 2)
    probe._fit(digits[0], digits[1], 1.0)
    assert "had not converged after 2 iterations" in capsys.readouterr().out


def test_strong_regularisation_is_chosen_where_most_features_are_noise():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 400)
    noise = rng.standard_normal((400, 300))
    assert probe.choose_c(noise + 0.3 * label[:, None] * (np.arange(300) < 5), label, seed=0) < 0.1


def test_one_label_a_class_is_enough_for_the_linear_probe():
    assert probe.linear_probe(np.eye(3), np.array([0, 1, 2]), np.eye(3)).tolist() == [0, 1, 2]


def test_few_shot_is_perfect_on_separate_classes_and_chance_on_noise():
    rng = np.random.default_rng(0)
    label = np.repeat(np.arange(6), 30)
    separate = np.eye(6)[label] + 0.01 * rng.standard_normal((180, 6))
    assert few_shot(separate, label, separate.mean(0), 5, 1, 50) == (100.0, 0.0)
    accuracy, half = few_shot(rng.standard_normal((180, 6)), label, np.zeros(6), 5, 5, 400)
    assert abs(accuracy - 20) < 4 and 0.2 < half < 2


def test_few_shot_says_when_there_are_too_few_classes():
    with pytest.raises(BadInput, match="only 2 classes have more than 5 test examples"):
        few_shot(np.zeros((40, 2)), np.arange(40) % 2, np.zeros(2), 5, 5, 10)


def test_the_linear_probe_is_fitted_with_one_blas_thread_and_leaves_the_others_as_they_are(monkeypatch):
    seen, fit = [], LogisticRegression.fit

    def watched(self, *given):
        seen.extend(each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas")
        return fit(self, *given)

    monkeypatch.setattr(LogisticRegression, "fit", watched)
    before = threadpool_info()
    probe.fit(np.random.default_rng(0).normal(size=(40, 4)), np.arange(40) % 2)
    assert seen and set(seen) == {1} and threadpool_info() == before
