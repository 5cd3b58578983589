"""``score``: which of the known modalities count."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_mmvae.handlers import Target, observe, score, target_of

B = 4
DATA = {"a": torch.arange(4.0), "b": torch.ones(4)}
SEEN = {"a": torch.tensor([True, True, False, True]), "b": torch.ones(4, dtype=torch.bool)}


def log_prob(*targets: Any) -> dict[str, list[bool]]:
    """Which rows of each modality are scored, under nested targets."""
    with poutine.trace() as t:
        program = story
        for target in targets:
            program = score(target)(program)
        program()
    t.trace.compute_log_prob()
    assert torch.equal(t.trace.nodes["a"]["value"], torch.where(SEEN["a"], DATA["a"], 0.0))
    return {m: (t.trace.nodes[m]["log_prob"] != 0).tolist() for m in ("a", "b")}


def story() -> None:
    with pyro.plate("data", B), observe(DATA, SEEN, ("a", "b")):
        pyro.sample("a", dist.Normal(0.3, 1.0))
        pyro.sample("b", dist.Normal(0.3, 1.0))


NONE, ALL, A = [False] * 4, [True] * 4, [True, True, False, True]


def test_names() -> None:
    assert log_prob() == {"a": A, "b": ALL}
    assert log_prob({"a"}) == {"a": A, "b": NONE}
    assert log_prob(["a", "b"]) == {"a": A, "b": ALL}
    assert log_prob(()) == {"a": NONE, "b": NONE}


def test_rows() -> None:
    some = torch.tensor([True, False, True, True])
    assert log_prob({"a": some}) == {"a": [True, False, False, True], "b": ALL}  # b is not named: scored as observed
    assert log_prob({"a": Target(some), "b": Target(~some)}) == {"a": [True, False, False, True], "b": (~some).tolist()}


def test_the_innermost_target_decides() -> None:
    assert log_prob({"a"}, {"b"}) == {"a": A, "b": NONE}
    assert log_prob({"a": torch.zeros(4, dtype=torch.bool)}, {"b"}) == {"a": NONE, "b": ALL}


def test_without_a_target() -> None:
    assert target_of("a") is None
    with score({"a"}):
        assert bool(target_of("a").mask) and not bool(target_of("b").mask)
    assert target_of("a") is None


def test_terms_on_the_left_of_the_rows() -> None:
    target = torch.tensor([[True] * 4, [False] * 4, [True, False, True, False]])
    with poutine.trace() as t, score({"a": target}), pyro.plate("terms", 3, dim=-2):
        story()
    t.trace.compute_log_prob()
    assert torch.equal(t.trace.nodes["a"]["log_prob"] != 0, target & SEEN["a"])
    assert (t.trace.nodes["b"]["log_prob"] != 0).all()


def test_unscored_modalities_give_no_gradient() -> None:
    loc = torch.tensor(0.3, requires_grad=True)
    with poutine.trace() as t, score({"b"}), pyro.plate("data", B), observe(DATA, None, ("a", "b")):
        pyro.sample("a", dist.Normal(loc, 1.0))
        pyro.sample("b", dist.Normal(0.3, 1.0))
    (gradient,) = torch.autograd.grad(t.trace.log_prob_sum(), loc)
    assert gradient == 0
    with pytest.raises(TypeError):
        score(3)  # type: ignore[arg-type]
