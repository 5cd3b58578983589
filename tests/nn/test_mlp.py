"""Multi-layer perceptrons and checks of sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pyro_mmvae.nn.mlp import event_size, flatten_event, mlp, multiply_adds


def test_layers():
    net = mlp(3, (8, 4), 2, activation=nn.Tanh, dropout=0.1)
    assert [type(layer).__name__ for layer in net] == ["Linear", "Tanh", "Dropout"] * 2 + ["Linear"]
    assert multiply_adds(net) == 3 * 8 + 8 * 4 + 4 * 2
    assert len(mlp(3, ())) == 0 and len(mlp(3, (), 2)) == 1


@pytest.mark.parametrize("hidden", [(0,), (8, -1), (2.5,), (True,), 8])
def test_widths_are_positive_integers(hidden):
    with pytest.raises(ValueError, match="width"):
        mlp(3, hidden)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_dropout_is_a_rate(dropout):
    with pytest.raises(ValueError, match="dropout"):
        mlp(3, (2,), dropout=dropout)


@pytest.mark.parametrize("shape", [0, (2, 0), (-1,), (1.5,)])
def test_event_sizes(shape):
    with pytest.raises(ValueError, match="positive integer"):
        event_size(shape)


def test_numpy_integers_are_integers():
    assert event_size((np.int64(2), 3)) == event_size([2, np.int32(3)]) == (2, 3)
    assert type(event_size(np.int64(2))[0]) is int and multiply_adds(mlp(np.int64(3), (np.int64(2),))) == 6


def test_flatten_keeps_the_batch():
    assert flatten_event(torch.zeros(7, 5, 4, 8), torch.Size([4, 8]), "x").shape == (7, 5, 32)
    assert flatten_event(torch.zeros(5), torch.Size([]), "x").shape == (5, 1)
    assert flatten_event(torch.zeros(0, 3), torch.Size([3]), "x").shape == (0, 3)
    with pytest.raises(ValueError, match=r"expected data of shape \(\*batch, 4, 8\), got \(5, 32\)"):
        flatten_event(torch.zeros(5, 32), torch.Size([4, 8]), "x")
