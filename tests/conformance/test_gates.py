"""Law 7: what is detached gets exactly zero gradient; what holds around a program holds inside its decoders.

Test layer.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn
from torch.func import functional_call

import pyro_mmvae as mm
from pyro_mmvae.objectives import Each, Nothing, Observed
from tests.conformance.cases import Case
from tests.conformance.evaluate import gradients, value
from tests.conformance.problems import Problem

EXACT = {"rtol": 1e-10, "atol": 1e-10}  # the same sums in float64, in another order

DECODER, PRIOR, ENCODER = "decoders.", "program.prior.", "guide."


def table(**options: Any) -> mm.ELBO:
    """One term, analytic KL."""
    return mm.ELBO(mm.Terms([mm.Term(**options)]))


def by_part(vae: mm.MultimodalVAE, p: Problem, objective: mm.ELBO) -> dict[str, list[Tensor]]:
    """Gradients of the decoders, the prior and the guide."""
    found = gradients(vae, value(vae, p.data, p.obs_mask, p.noise(), objective=objective).sum())
    return {part: [g for name, g in found.items() if part in name] for part in (DECODER, PRIOR, ENCODER)}


def zero(parts: list[Tensor]) -> bool:
    return all(bool((g == 0).all()) for g in parts)


def same(one: list[Tensor], other: list[Tensor]) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.law("gates")
def test_decoder_gate(case: Case) -> None:
    p = case.make()
    vae = case.vae(p, lazy=True)
    free, gated = by_part(vae, p, table()), by_part(vae, p, table(detach=frozenset({"decoder"})))
    assert not zero(free[DECODER])
    assert zero(gated[DECODER])
    same(gated[ENCODER], free[ENCODER])
    same(gated[PRIOR], free[PRIOR])


@pytest.mark.law("gates")
def test_posterior_gate(case: Case) -> None:
    p = case.make()
    vae = case.vae(p, lazy=True)
    free, gated = by_part(vae, p, table()), by_part(vae, p, table(detach=frozenset({"posterior"})))
    assert not zero(free[ENCODER])
    assert zero(gated[ENCODER])
    same(gated[DECODER], free[DECODER])
    for more in ("prior", "z"):
        both = by_part(vae, p, table(detach=frozenset({"posterior", more})))
        assert zero(both[ENCODER])
        assert zero(both[PRIOR]) == (more == "prior")
    every = by_part(vae, p, table(detach=frozenset({"posterior", "prior", "decoder"})))
    assert zero([*every[ENCODER], *every[PRIOR], *every[DECODER]])


@pytest.mark.law("gates")
def test_draws_gate(case: Case) -> None:
    p = case.make()
    vae = case.vae(p, lazy=True)
    if case.is_mixture:  # divergences are sampled at the draws: what is left is the gradient of log q alone
        gated = by_part(vae, p, table(detach=frozenset({"z"}), target=Nothing(), beta=0.0))
        assert zero([*gated[ENCODER], *gated[DECODER]])
        return
    free = by_part(vae, p, table())
    gated = by_part(vae, p, table(detach=frozenset({"z"})))
    divergence = by_part(vae, p, table(target=Nothing()))
    same(gated[DECODER], free[DECODER])
    same(gated[ENCODER], divergence[ENCODER])


@pytest.mark.law("gates")
def test_prior_gate_of_a_term_against_experts(case: Case) -> None:
    """T(O -> nothing || q_m) teaches the experts q_m; with the gate only the first argument moves."""
    p = case.make()
    vae = case.vae(p, lazy=True)
    rows = slice(-1, None)
    data, mask, eps = (
        {k: x[..., rows, :] if x.dim() > 1 else x[rows] for k, x in d.items()} for d in (p.data, p.obs_mask, p.noise())
    )

    def pull(objective: mm.ELBO) -> dict[str, Tensor]:
        return gradients(vae, value(vae, data, mask, eps, objective=objective).sum())

    against = {"source": Observed(), "target": Nothing(), "prior": Each()}
    both = pull(table(**against))
    first = pull(table(**against, detach=frozenset({"prior"})))
    second = pull(table(**against, detach=frozenset({"posterior"})))
    neither = pull(table(**against, detach=frozenset({"posterior", "prior"})))
    assert any(bool((g != 0).any()) for g in both.values())
    for name, g in both.items():
        torch.testing.assert_close(first[name] + second[name], g, rtol=1e-9, atol=1e-9)
        assert (neither[name] == 0).all(), name


@pytest.mark.law("gates")
def test_gates_may_differ_between_terms(case: Case) -> None:
    p = case.make()
    vae = case.vae(p, lazy=True)
    gated = mm.Term(detach=frozenset({"decoder"}))
    both = by_part(vae, p, mm.ELBO(mm.Terms([mm.Term(), gated])))
    free = by_part(vae, p, table())
    same(both[DECODER], free[DECODER])
    same(both[ENCODER], [2 * g for g in free[ENCODER]])


class Inside(nn.Module):
    """A program run inside a context manager."""

    def __init__(self, program: nn.Module, context: Callable[[], Any]) -> None:
        super().__init__()
        self.program, self.context = program, context

    def forward(self, data: Any = None, obs_mask: Any = None, n: int | None = None) -> Any:
        with self.context():
            return self.program(data, obs_mask, n)


@pytest.mark.law("around programs")
@pytest.mark.param_store
@pytest.mark.parametrize("stock", [False, True], ids=["ELBO", "Trace_ELBO"])
def test_autocast_holds_inside_lazy_decoders(case: Case, stock: bool) -> None:
    p = case.make()
    vae = case.vae(p, lazy=True).float()
    decoders = vae.model.story.program.decoders
    model = Inside(vae.model, lambda: torch.autocast("cpu", dtype=torch.bfloat16))
    objective = Trace_ELBO() if stock else mm.ELBO()
    data = {m: x.float() for m, x in p.data.items()}
    loss = objective.differentiable_loss(model, vae.guide, data, p.obs_mask)
    assert loss.isfinite()
    assert {d.dtypes[-1] for d in decoders.values()} == {torch.bfloat16}
    objective.differentiable_loss(vae.model, vae.guide, data, p.obs_mask)
    assert {d.dtypes[-1] for d in decoders.values()} == {torch.float32}


@pytest.mark.law("around programs")
@pytest.mark.param_store
@pytest.mark.parametrize("stock", [False, True], ids=["ELBO", "Trace_ELBO"])
def test_no_grad_holds_inside_lazy_decoders(case: Case, stock: bool) -> None:
    p = case.make()
    vae = case.vae(p, lazy=True)
    objective = Trace_ELBO() if stock else mm.ELBO(kl="sampled")
    loss = objective.differentiable_loss(Inside(vae.model, torch.no_grad), vae.guide, p.data, p.obs_mask)
    found = gradients(vae, loss)
    assert zero([g for name, g in found.items() if DECODER in name])
    assert any(bool((g != 0).any()) for name, g in found.items() if name.startswith(ENCODER))


class Call(nn.Module):
    """Holds a model while a thunk runs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, thunk: Callable[[], Tensor]) -> Tensor:
        return thunk()


@pytest.mark.law("around programs")
def test_functional_call_holds_inside_lazy_decoders(case: Case) -> None:
    p = case.make()
    vae = case.vae(p, lazy=True)
    call = Call(vae.model)
    frozen = {name: w.detach() for name, w in call.named_parameters()}

    def thunk() -> Tensor:
        return value(vae, p.data, p.obs_mask, p.noise(vae.objective.num_particles))

    loss = functional_call(call, frozen, (thunk,))
    torch.testing.assert_close(loss, thunk(), **EXACT)
    found = gradients(vae, loss.sum())
    assert zero([g for name, g in found.items() if name.startswith("model.")])
    assert any(bool((g != 0).any()) for name, g in found.items() if name.startswith(ENCODER))
    halved = {name: w if "decoders" not in name else w / 2 for name, w in frozen.items()}
    assert not torch.allclose(functional_call(call, halved, (thunk,)), loss)


@pytest.mark.law("around programs")
@pytest.mark.parametrize("hidden", ["masked", "absent", "none", "complete"])
def test_a_wrapped_model_is_the_model(case: Case, hidden: str) -> None:
    p = case.make(per_feature=hidden == "masked")
    vae = case.vae(p, lazy=True)
    data, mask = dict(p.data), dict(p.obs_mask)
    if hidden == "absent":
        del data["b"], mask["b"]
    if hidden == "none":
        data["b"] = None
    if hidden == "complete":
        data, mask = dict(p.complete), None
    eps = p.noise(vae.objective.num_particles)
    wanted = value(vae, data, mask, eps)
    torch.manual_seed(3)
    with mm.handlers.noise(eps):
        found = vae.objective.per_sample(Inside(vae.model, nullcontext), vae.guide, data, mask)
    torch.testing.assert_close(found, wanted, **EXACT)
    assert not pyro.get_param_store().keys()
