"""What methods without a latent make of the same digits: the mean, neighbors, support vector machines.

Layer: quickstart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_mmvae.quickstart.scores import HALVES, SHOWN_FOR_LABEL, Scores, rmse

if TYPE_CHECKING:
    from pyro_mmvae.datasets import MultimodalDataset

__all__ = ["of_baselines"]


def of_baselines(
    hidden: MultimodalDataset, complete: MultimodalDataset, held_out: MultimodalDataset
) -> dict[str, Scores]:
    """
    Scores by name, for each baseline.

    :param hidden: the training digits as the model sees them.
    :param complete: the same digits with nothing hidden, which only the last support vector machine sees.
    :param held_out: complete digits.
    """
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.svm import SVC

    both = hidden[hidden.obs_mask["top"] & hidden.obs_mask["bottom"]]
    labelled = hidden.complete_cases()
    return {
        "5 neighbors": {
            **_accuracies(KNeighborsClassifier(5), labelled, held_out),
            **_completions(both, held_out),
        },
        "SVM, complete rows": _accuracies(SVC(C=10.0), labelled, held_out),
        "SVM, all labels": _accuracies(SVC(C=10.0), complete, held_out),
        "training mean": _means(hidden, held_out),
    }


def _means(hidden: MultimodalDataset, held_out: MultimodalDataset) -> Scores:
    """The mean image of what is observed, and the most frequent class."""
    labels = hidden.data["label"][hidden.obs_mask["label"]]
    accuracy = float((held_out.data["label"] == labels.mode().values).float().mean())
    found = {f"accuracy {'+'.join(given)}": accuracy for given in SHOWN_FOR_LABEL}
    for half in HALVES:
        found[f"rmse {half}"] = rmse(hidden.data[half][hidden.obs_mask[half]].mean(0), held_out.data[half])
    return found


def _completions(rows: MultimodalDataset, held_out: MultimodalDataset) -> Scores:
    """The mean of the five digits whose seen half is nearest."""
    from sklearn.neighbors import KNeighborsRegressor

    found = {}
    for half, seen in HALVES.items():
        neighbors = KNeighborsRegressor(5).fit(_features(rows, (seen,)), _features(rows, (half,)))
        completed = torch.from_numpy(neighbors.predict(_features(held_out, (seen,))))
        found[f"rmse {half}"] = rmse(completed, _features(held_out, (half,)))
    return found


def _accuracies(classifier: Any, rows: MultimodalDataset, held_out: MultimodalDataset) -> Scores:
    """Of the classifier fitted to each set of halves."""
    found = {}
    for given in SHOWN_FOR_LABEL:
        classifier.fit(_features(rows, given), rows.data["label"])
        found[f"accuracy {'+'.join(given)}"] = classifier.score(_features(held_out, given), held_out.data["label"])
    return found


def _features(digits: MultimodalDataset, given: tuple[str, ...]) -> Tensor:  # shape: (B, pixels)
    return torch.cat([digits.data[m].flatten(1) for m in given], -1)
