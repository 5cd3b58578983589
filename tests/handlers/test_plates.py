"""Plates inside a plate: rows are copied, global sites are not."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

import pyro_mmvae as mm
from pyro_mmvae.handlers import WithinPlate

B, J, K = 5, 3, 2
SEEN = torch.tensor([True, False, True, True, False])


def model() -> Tensor:
    g = pyro.sample("g", dist.Normal(0.0, 1.0).expand([3, 2]).to_event(2))
    with pyro.plate("groups", 4, dim=-2):
        pyro.sample("h", dist.Normal(0.0, 1.0))
    data = pyro.plate("data", 10 * B, subsample=torch.arange(B), dim=-1)
    with data, mm.handlers.observe({"x": torch.ones(B, 3)}, {"x": SEEN}, ("x",)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ g.T, 1.0).to_event(1))
    return g


def test_only_what_lies_inside_is_widened() -> None:
    with poutine.trace() as t, WithinPlate("particles", K, -4), WithinPlate("terms", J, -3):
        model()
    t.trace.compute_log_prob()
    shapes = {n: (tuple(s["value"].shape), tuple(s["log_prob"].shape), s["scale"]) for n, s in t.trace.nodes.items()
              if s["type"] == "sample" and n in "ghzx"}
    assert shapes == {
        "g": ((3, 2), (), 1.0),
        "h": ((4, 1), (4, 1), 1.0),
        "z": ((K, J, 1, B, 2), (K, J, 1, B), 10.0),
        "x": ((B, 3), (K, J, 1, B), 10.0),
    }
    assert len(t.trace.nodes["z"]["value"].unique()) == K * J * B * 2
    names = {n: [f.name for f in t.trace.nodes[n]["cond_indep_stack"]] for n in "gz"}
    assert names["g"] == [] and sorted(names["z"]) == ["data", "particles", "terms"]


def test_scores_equal_the_loop() -> None:
    g, z = torch.randn(3, 2), torch.randn(J, 1, B, 2)

    def at(z: Tensor) -> Any:
        return poutine.condition(model, {"g": g, "z": z, "h": torch.zeros(4, 1)})

    with poutine.trace() as t, WithinPlate("terms", J, -3):
        at(z)()
    together = t.trace.log_prob_sum()
    single = [poutine.trace(at(z[j, 0])).get_trace().log_prob_sum() for j in range(J)]
    outside = dist.Normal(0.0, 1.0).log_prob(g).sum() + dist.Normal(0.0, 1.0).log_prob(torch.zeros(4)).sum()
    torch.testing.assert_close(together, sum(single) - (J - 1) * outside)


def test_another_plate_may_be_the_one_within() -> None:
    with poutine.trace() as t, WithinPlate("copies", 6, -3, within="groups"):
        model()
    assert t.trace.nodes["h"]["value"].shape == (6, 4, 1) and t.trace.nodes["z"]["value"].shape == (B, 2)
