"""What the digits give to methods without a latent: the mean, neighbors, support vector machines.

Layer: quickstart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_mmvae.quickstart.scores import HALVES, SHOWN_FOR_LABEL, rmse

if TYPE_CHECKING:
    from pyro_mmvae.datasets import MultimodalDataset

__all__ = ["of_baselines"]

Scores = dict[str, dict[str, float]]


def of_baselines(hidden: MultimodalDataset, complete: MultimodalDataset, held_out: MultimodalDataset) -> Scores:
    """
    Baseline -> score -> value.

    :param hidden: the training digits as the model sees them.
    :param complete: the same digits with nothing hidden, which only the last baseline sees.
    :param held_out: complete digits.
    """
    seen = hidden.obs_mask
    both = seen["top"] & seen["bottom"]
    rows = {"5 neighbors": both & seen["label"], "SVM, complete rows": both & seen["label"]}
    out: Scores = {"training mean": _mean(hidden, held_out), "5 neighbors": _completions(hidden[both], held_out)}
    for name, chosen in rows.items():
        out.setdefault(name, {}).update(_accuracies(_classifier(name), hidden[chosen], held_out))
    out["SVM, all labels"] = _accuracies(_classifier("SVM"), complete, held_out)
    return out


def _classifier(name: str) -> object:
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.svm import SVC

    return KNeighborsClassifier(5) if name == "5 neighbors" else SVC(C=10.0)


def _mean(hidden: MultimodalDataset, held_out: MultimodalDataset) -> dict[str, float]:
    """The mean image of what is observed, and the most frequent class."""
    labels = hidden.data["label"][hidden.obs_mask["label"]]
    accuracy = float((held_out.data["label"] == labels.mode().values).float().mean())
    out = {f"accuracy {'+'.join(given)}": accuracy for given in SHOWN_FOR_LABEL}
    for half in HALVES:
        out[f"rmse {half}"] = rmse(hidden.data[half][hidden.obs_mask[half]].mean(0), held_out.data[half])
    return out


def _completions(rows: MultimodalDataset, held_out: MultimodalDataset) -> dict[str, float]:
    """The mean of the five digits whose seen half is nearest."""
    from sklearn.neighbors import KNeighborsRegressor

    out = {}
    for half, seen in HALVES.items():
        found = KNeighborsRegressor(5).fit(_features(rows, (seen,)), _features(rows, (half,)))
        completed = torch.from_numpy(found.predict(_features(held_out, (seen,)).numpy()))
        out[f"rmse {half}"] = rmse(completed, _features(held_out, (half,)))
    return out


def _accuracies(classifier: object, rows: MultimodalDataset, held_out: MultimodalDataset) -> dict[str, float]:
    out = {}
    for given in SHOWN_FOR_LABEL:
        classifier.fit(_features(rows, given), rows.data["label"])
        accuracy = classifier.score(_features(held_out, given), held_out.data["label"])
        out[f"accuracy {'+'.join(given)}"] = float(accuracy)
    return out


def _features(digits: MultimodalDataset, given: tuple[str, ...]) -> Tensor:  # shape: (B, pixels)
    return torch.cat([digits.data[m].flatten(1) for m in given], -1)
