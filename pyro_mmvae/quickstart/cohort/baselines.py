"""What simpler methods say about hidden cells: the mean of the column, nearest neighbors, ridge regression.

Layer: quickstart; scikit-learn is imported where it is used. All of them work on features whose mean is 0.
"""

from __future__ import annotations

import warnings

import numpy as np

__all__ = ["neighbors", "ridge"]

NEIGHBORS = 10
PENALTIES = np.logspace(-1, 5, 13)
_MOST_PATTERNS = 100  # of gaps in what ridge regression predicts; beyond, gaps are filled with the mean


def neighbors(
    train: np.ndarray,  # shape: (N, F), NaN = missing
    test: np.ndarray,  # shape: (n, F), NaN = missing
    wanted: np.ndarray,  # shape: (W,), places of features
    k: int = NEIGHBORS,
) -> np.ndarray:  # shape: (n, W)
    """
    For each feature the mean of the k nearest training rows that have it, by the distance over what both rows have.

    Semantically equivalent to ``sklearn.impute.KNNImputer(k).fit(train).transform(test)`` where a feature is missing.
    Rows that share nothing with any other get the mean, 0.
    """
    from sklearn.metrics.pairwise import nan_euclidean_distances

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # rows without a common feature
        distance = nan_euclidean_distances(test, train)
    distance[np.isnan(distance)] = np.inf
    found = np.zeros((len(test), len(wanted)))
    order = np.argsort(distance, axis=1, kind="stable")
    for j, feature in enumerate(wanted):
        values = train[order, feature]  # of the training rows, nearest first
        there = ~np.isnan(values) & np.isfinite(np.take_along_axis(distance, order, 1))
        used = there & (there.cumsum(1) <= k)
        total = np.where(used, values, 0.0).sum(1)
        found[:, j] = total / np.maximum(used.sum(1), 1)
    return found


def ridge(
    train: np.ndarray,  # shape: (N, F), NaN = missing
    test: np.ndarray,  # shape: (n, F), NaN = missing
    inputs: np.ndarray,  # places of features
    wanted: np.ndarray,  # shape: (W,), places of features
) -> np.ndarray:  # shape: (n, W)
    """
    Multi-output ridge regression on inputs with gaps filled by the mean; the penalty by leave-one-out.

    Features that are missing in the same training rows are fitted together, on the others.
    """
    x, new = (np.where(np.isnan(part), 0.0, part)[:, inputs] for part in (train, test))
    y = train[:, wanted]
    patterns, group = np.unique(np.isnan(y), axis=1, return_inverse=True)
    if patterns.shape[1] > _MOST_PATTERNS:
        whole = np.isnan(y).all(1)
        y, patterns, group = np.where(np.isnan(y), 0.0, y), whole[:, None], np.zeros(len(wanted), dtype=int)
    found = np.zeros((len(test), len(wanted)))
    for j, gone in enumerate(patterns.T):
        own = group.ravel() == j
        if (~gone).sum() > 2:
            found[:, own] = _fitted(x[~gone], y[~gone][:, own], new)
    return found


def _fitted(x: np.ndarray, y: np.ndarray, new: np.ndarray) -> np.ndarray:
    from sklearn.linear_model import RidgeCV

    return np.asarray(RidgeCV(PENALTIES).fit(x, y).predict(new)).reshape(len(new), -1)
