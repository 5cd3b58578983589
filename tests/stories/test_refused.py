"""What a story cannot be is said before anything is scored."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroSample
from torch import nn

import pyro_mmvae as mm


def visits() -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("visits", 5, dim=-2):
        pyro.sample("v", dist.Normal(z, 0.5))


@pytest.mark.parametrize("shape", [(3,), (3, 5)])
def test_a_modality_inside_a_plate(shape: tuple[int, ...]) -> None:
    """Data of shape (B,) would count five times."""
    message = r"modality 'v' is inside plate 'visits' of size 5(?s:.*)to_event(?s:.*)native"
    with pytest.raises(ValueError, match=message):
        mm.observe(visits, ("v",))({"v": torch.zeros(shape)})


def test_plates_around_single_elements() -> None:
    """A plate that is a loop, and one of size 1, count once."""

    def story() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        for i in pyro.plate("loop", 2):
            pyro.sample(f"v{i}", dist.Normal(z, 0.5))
        with pyro.plate("one", 1, dim=-2):
            pyro.sample("w", dist.Normal(z, 0.5))

    data = {name: torch.randn(3) for name in ("v0", "v1", "w")}
    trace = pyro.poutine.trace(mm.observe(story, tuple(data))).get_trace(data)
    z = trace.nodes["z"]["value"]
    exact = dist.Normal(0.0, 1.0).log_prob(z) + sum(dist.Normal(z, 0.5).log_prob(x) for x in data.values())
    torch.testing.assert_close(trace.log_prob_sum(), exact.sum(), rtol=1e-5, atol=1e-5)  # float32


class Weights(PyroModule):
    """A layer with random weights, inside the story of one sample."""

    def __init__(self, by_hand: bool) -> None:
        super().__init__()
        self.by_hand = by_hand
        self.layer: Any = PyroModule[nn.Linear](2, 3, bias=False)
        self.layer.weight = PyroSample(dist.Normal(torch.zeros(3, 2), 1.0).to_event(2))

    def forward(self) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        loc = (self.layer.weight @ z.unsqueeze(-1)).squeeze(-1) if self.by_hand else self.layer(z)
        pyro.sample("x", dist.Normal(loc, 0.5).to_event(1))


def test_layers_with_weights_per_sample() -> None:
    data = {"x": torch.zeros(4, 3)}
    with pytest.raises(ValueError, match=r"PyroSample attributes \['layer.weight'\](?s:.*)native model"):
        mm.observe(Weights(False), ("x",))(data)
    trace = pyro.poutine.trace(mm.observe(Weights(True), ("x",))).get_trace(data)
    assert trace.nodes["layer.weight"]["value"].shape == (4, 3, 2)


def test_other_errors_pass_as_they_are() -> None:
    def story() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ torch.zeros(3, 3), 0.5).to_event(1))

    with pytest.raises(RuntimeError, match="shape"):
        mm.observe(story, ("x",))({"x": torch.zeros(4, 3)})
