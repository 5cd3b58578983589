"""Values drawn elsewhere: as ``poutine.replay``, from plain tensors."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine

from pyro_mmvae.handlers import replay


def program() -> None:
    with pyro.plate("data", 3):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("w", dist.Normal(z, 2.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.zeros(3))


def test_equals_replaying_a_trace() -> None:
    source = poutine.trace(program).get_trace()
    values = {name: source.nodes[name]["value"] for name in ("z", "w")}
    ours = poutine.trace(replay(values)(program)).get_trace()
    theirs = poutine.trace(poutine.replay(program, trace=source)).get_trace()
    for name in ("z", "w", "x"):
        assert ours.nodes[name]["value"] is theirs.nodes[name]["value"] or name == "x"
        assert ours.nodes[name]["is_observed"] == theirs.nodes[name]["is_observed"]
    torch.testing.assert_close(ours.log_prob_sum(), theirs.log_prob_sum())


def test_what_is_not_named_is_drawn_and_what_is_observed_stays() -> None:
    values = {"z": torch.ones(3), "x": torch.full((3,), 7.0)}
    nodes = poutine.trace(replay(values)(program)).get_trace().nodes
    assert nodes["z"]["value"] is values["z"] and not nodes["z"]["is_observed"]
    assert len(nodes["w"]["value"].unique()) == 3 and (nodes["x"]["value"] == 0).all()
