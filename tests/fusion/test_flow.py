"""Flow posteriors: densities integrate and follow the change of variables, with and without the draw at hand.

Test layer.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms as T
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

import pyro_mmvae as mm
from pyro_mmvae import fusion
from pyro_mmvae.distributions import Where, map_params
from pyro_mmvae.fusion import Experts, Flow
from pyro_mmvae.fusion.flow import FlowPosterior, Reorder
from pyro_mmvae.objectives.gates import with_parameters_detached
from tests.fusion.rules import case_of, experts_of, mask_of, prior_of

pytestmark = pytest.mark.usefixtures("float64")

EXACT = {"rtol": 1e-9, "atol": 1e-9}  # inverses of a few layers in float64
KINDS = {
    "autoregressive": lambda d: [T.affine_autoregressive(d, [8])],
    "coupling": lambda d: [T.affine_coupling(d, [8]), T.permute(d, torch.arange(d).flip(0)), T.affine_coupling(d, [8])],
    "spline": lambda d: [T.spline(d, count_bins=4), Reorder(torch.arange(d).roll(1)), T.spline_coupling(d)],
}
RULES = {
    "product": lambda: fusion.Product(),
    "never": lambda: fusion.Product(prior_expert="never"),
    "mixture": lambda: fusion.Mixture(),
    "hoelder": lambda: fusion.Hoelder("mixture"),
}


def shaken(transforms: Sequence[Any], amount: float = 0.4) -> list[Any]:
    """The transforms with parameters that do something."""
    for t in transforms:
        if isinstance(t, torch.nn.Module):
            for p in t.parameters():
                p.data.add_(amount * torch.randn_like(p))
    return list(transforms)


def flow_of(kind: str = "coupling", rule: str = "product", size: int = 2) -> Flow:
    """A flow over the case's latent."""
    return Flow(RULES[rule](), shaken(KINDS[kind](size)))


def through(flow: Flow, u: Tensor) -> Tensor:
    """The transforms one after the other."""
    for t in flow.transforms:
        u = t._call(u)
    return u


@pytest.mark.parametrize("rule", list(RULES))
@pytest.mark.parametrize("size", [1, 2])
def test_density_integrates_to_one(size: int, rule: str) -> None:
    flow = Flow(RULES[rule](), shaken([T.spline(1, count_bins=4)] if size == 1 else KINDS["coupling"](2)))
    one, two = (dist.Normal(torch.full((1, size), a), b).to_event(1) for a, b in ((-0.5, 0.8), (1.0, 0.5)))
    q = flow(dist.Normal(torch.zeros(size), 1.0).to_event(1), Experts(("a", "b"), (one, two)), torch.ones(2, 1).bool())
    step = 1e-4 if size == 1 else 0.02
    axis = torch.arange(-8.0, 8.0, step)
    with torch.no_grad():
        total = q.log_prob(torch.cartesian_prod(*[axis] * size).reshape(-1, 1, size)).exp().sum() * step**size
    # a spline's density jumps at its two ends, by less than one: each costs a sum up to a step; the networks of a
    # coupling have kinks, which cost up to the order of the step squared
    assert abs(float(total) - 1) < (2 * step if size == 1 else step**2)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("rule", list(RULES))
def test_density_of_draws_is_the_change_of_variables(kind: str, rule: str) -> None:
    case, flow = case_of(), flow_of(kind, rule)
    args = prior_of(case), experts_of(case), mask_of(case)
    q = flow(*args)
    base = flow.rule(*args)
    torch.manual_seed(3)
    u = base.rsample((4,)).detach()
    torch.manual_seed(3)
    z = q.rsample((4,))
    expected = base.log_prob(u)
    for k in range(4):
        assert torch.equal(z[k, 0], u[k, 0])  # nothing observed: the prior itself
        for n in range(1, 8):
            torch.testing.assert_close(z[k, n], through(flow, u[k, n]), **EXACT)
            jacobian = torch.autograd.functional.jacobian(lambda x: through(flow, x), u[k, n])
            expected[k, n] -= torch.linalg.slogdet(jacobian)[1]
    torch.testing.assert_close(q.log_prob(z), expected, **EXACT)
    torch.testing.assert_close(q.log_prob(z.clone()), expected, **EXACT)  # not the draw itself: by the inverse
    torch.testing.assert_close(flow(*args).log_prob(z), expected, **EXACT)


@pytest.mark.parametrize("kind", list(KINDS))
def test_gradients_are_those_of_the_inverse(kind: str) -> None:
    case, flow = case_of(), flow_of(kind)
    leaf = torch.randn(8, 2, requires_grad=True)
    mask = torch.ones(1, 8, dtype=torch.bool)
    prior = prior_of(case)
    values = []
    for direct in (True, False):
        q = flow(prior, Experts(("a",), (dist.Normal(leaf, 0.7).to_event(1),)), mask)
        torch.manual_seed(0)
        z = q.rsample()
        score = q.log_prob(z if direct else z.clone()).sum()
        values.append(torch.autograd.grad(score, [leaf, *flow.parameters()]))
    for a, b in zip(*values, strict=True):
        torch.testing.assert_close(a, b, **EXACT)
    assert any((g != 0).any() for g in values[0][1:])


def test_gradient_with_detached_parameters_ignores_the_draw_at_hand() -> None:
    case, flow = case_of(), flow_of("coupling")
    args = prior_of(case), experts_of(case), mask_of(case)
    q = flow(*args)
    z = q.rsample()
    parameters = list(flow.parameters())
    inside = with_parameters_detached([flow], lambda: q.log_prob(z)).sum()
    frozen = copy.deepcopy(flow).requires_grad_(False)
    expected = frozen(*args).log_prob(z).sum()
    pairs = [torch.autograd.grad(s, parameters, retain_graph=True) for s in (inside, expected)]
    for a, b in zip(*pairs, strict=True):
        torch.testing.assert_close(a, b, **EXACT)
    plain = torch.autograd.grad(q.log_prob(z).sum(), parameters)
    assert not torch.allclose(plain[0], pairs[0][0])


def test_draws_without_gradient_are_scored_with_one() -> None:
    case, flow = case_of(), flow_of("coupling")
    q = flow(prior_of(case), experts_of(case), mask_of(case))
    with torch.no_grad():
        first = q.rsample()
    for z in (first, q.sample()):
        assert not z.requires_grad
        expected = flow(prior_of(case), experts_of(case), mask_of(case)).log_prob(z)
        pair = [torch.autograd.grad(s.sum(), list(flow.parameters())) for s in (q.log_prob(z), expected)]
        for a, b in zip(*pair, strict=True):
            torch.testing.assert_close(a, b, **EXACT)


def test_equals_the_transformed_distribution_of_pyro() -> None:
    case, flow = case_of(), flow_of("autoregressive", "never")
    args = prior_of(case), experts_of(case), mask_of(case)
    plain = dist.TransformedDistribution(flow.rule(*args), list(flow.transforms))
    expected = Where(mask_of(case).any(0), plain, prior_of(case))
    z = torch.randn(3, 8, 2)
    torch.testing.assert_close(flow(*args).log_prob(z), expected.log_prob(z), **EXACT)


@pytest.mark.parametrize("rule", list(RULES))
def test_nothing_observed_is_exactly_the_prior(rule: str) -> None:
    case, flow = case_of(), flow_of("spline", rule)
    for prior in (prior_of(case), dist.Laplace(*case.model.prior).to_event(1)):
        z = torch.randn(8, 2)
        found = flow(prior, experts_of(case), mask_of(case)).log_prob(z)
        torch.testing.assert_close(found[0], prior.log_prob(z[0]), rtol=1e-14, atol=0)
        assert not torch.isclose(found[1], prior.log_prob(z[1]))


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("rule", list(RULES))
def test_leading_dimensions_of_masks_equal_a_loop(kind: str, rule: str) -> None:
    case, flow = case_of(), flow_of(kind, rule)
    masks = (torch.rand(3, 4, 1, 8) < 0.6) & mask_of(case)[:, None, None]
    q = flow(prior_of(case), experts_of(case), masks)
    assert q.batch_shape == (4, 1, 8)
    z = q.rsample((5,))
    assert z.shape == (5, 4, 1, 8, 2)
    together = q.log_prob(z)
    assert together.shape == (5, 4, 1, 8)
    row = torch.randn(8, 2)
    shared = q.log_prob(row)
    for j in range(4):
        alone = flow(prior_of(case), experts_of(case), masks[:, j, 0])
        torch.testing.assert_close(together[:, j, 0], alone.log_prob(z[:, j, 0]), **EXACT)
        torch.testing.assert_close(shared[j, 0], alone.log_prob(row), **EXACT)
    wide = flow(prior_of(case), experts_of(case), mask_of(case)).expand((2, 1, 8))
    assert wide.rsample().shape == (2, 1, 8, 2)


def test_component_is_the_flow_of_the_component() -> None:
    case, flow = case_of(), flow_of("coupling", "mixture")
    args = prior_of(case), experts_of(case), mask_of(case)
    z = torch.randn(8, 2)
    found = flow.component(*args).log_prob(z)
    expected = FlowPosterior(flow.rule.component(*args), tuple(flow.transforms), mask_of(case).any(0)).log_prob(z)
    assert torch.equal(found, expected)
    assert not torch.allclose(found, flow(*args).log_prob(z))


def test_rows_can_be_taken() -> None:
    case, flow = case_of(), flow_of("coupling", "mixture")
    q = flow(prior_of(case), experts_of(case), mask_of(case))
    some = map_params(
        q.expand((8,)), lambda p, constraint, k: p if p.dim() <= k else p.index_select(-1 - k, torch.tensor([0, 5]))
    )
    z = torch.randn(8, 2)
    assert some.batch_shape == (2,)
    torch.testing.assert_close(some.log_prob(z[[0, 5]]), q.log_prob(z)[[0, 5]], **EXACT)


def test_goes_to_another_device_and_leaves_the_model_where_it_is() -> None:
    case, flow = case_of(), flow_of("coupling", "product")
    with torch.device("meta"):  # a default device that is not the model's
        q = flow(prior_of(case), experts_of(case), mask_of(case))
        assert q.rsample().device.type == "cpu"
    moved = map_params(q, lambda p, constraint, k: p.to("meta"))
    z = moved.rsample()
    assert z.device.type == moved.log_prob(z).device.type == moved.log_prob(z.clone()).device.type == "meta"
    assert {t.device.type for t in (*flow.parameters(), *flow.buffers())} == {"cpu"}


def test_delegates_to_the_rule() -> None:
    class Listening(fusion.Product):
        def features(self, data: Any, obs_mask: Any) -> str:
            return f"features of {data}"

    flow = Flow(Listening(prior_expert="never"), shaken(KINDS["spline"](2)))
    assert flow.features("x", None) == "features of x"  # type: ignore[arg-type]
    assert flow.takes_single_rows and not Flow(fusion.MixtureOfProducts(), [T.spline(2)]).takes_single_rows
    assert flow.modalities is None and flow.counts is None
    said = json.loads(json.dumps(flow.options()))
    assert said["rule"] == ["Listening", {"prior_expert": "never"}]
    assert said["transforms"] == ["Spline", "Reorder", "SplineCoupling"]


def test_keeps_nothing_of_a_batch_and_is_restored_from_its_state() -> None:
    case = case_of()
    for kind in KINDS:
        flow = flow_of(kind)
        args = prior_of(case), experts_of(case), mask_of(case)
        q = flow(*args)
        q.log_prob(q.rsample().clone())
        again = copy.deepcopy(flow)  # fails for modules that hold a graph
        other = Flow(RULES["product"](), [*KINDS[kind](2)])
        other.load_state_dict(flow.state_dict())
        z = torch.randn(8, 2)
        for copied in (again, other):
            assert torch.equal(copied(*args).log_prob(z), q.log_prob(z))


def test_order_of_a_permutation_is_saved() -> None:
    order = torch.tensor([2, 0, 1])
    flow, other = (Flow(fusion.Product(), [T.permute(3, o)]) for o in (order, torch.arange(3)))
    other.load_state_dict(flow.state_dict())
    x = torch.randn(4, 3)
    assert torch.equal(other.transforms[0](x), x[:, order])
    assert torch.equal(other.transforms[0].inv(x[:, order]), x)


def test_wrong_parts_are_refused() -> None:
    with pytest.raises(TypeError, match="a fusion rule expected, got str"):
        Flow("product", [T.spline(2)])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"transforms\[1\]: a TransformModule expected, got ExpTransform"):
        Flow(fusion.Product(), [T.spline(2), T.ExpTransform()])
    with pytest.raises(TypeError, match="ConditionalSpline"):
        Flow(fusion.Product(), [T.conditional_spline(2, 3)])
    with pytest.raises(ValueError, match="at least one expected"):
        Flow(fusion.Product(), [])
    for order in ([0, 2], [0, 0], [[0, 1]]):
        with pytest.raises(ValueError, match="a permutation"):
            Reorder(torch.tensor(order))
    q = flow_of()(prior_of(case_of()), experts_of(case_of()), mask_of(case_of()))
    for name in ("mean", "variance"):
        with pytest.raises(NotImplementedError, match=r"q.sample\(\(1000,\)\)"):
            getattr(q, name)


def story() -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    for m in ("a", "b"):
        pyro.sample(m, dist.Normal(z, 0.5).to_event(1))


def positive_story() -> None:
    z = pyro.sample("z", dist.LogNormal(torch.zeros(2), 1.0).to_event(1))
    for m in ("a", "b"):
        pyro.sample(m, dist.Normal(z, 0.5).to_event(1))


def guide_of(program: Any, rule: fusion.Fusion) -> tuple[Any, Any]:
    """Model and guide in double precision."""
    model = mm.observe(program, ("a", "b"))
    encoders = {m: mm.nn.MLPEncoder(2, 2, hidden=(4,)) for m in ("a", "b")}
    return model, mm.guides.Fused(model, encoders, fusion=rule).double()


DATA = {"a": torch.randn(5, 2, dtype=torch.float64), "b": torch.randn(5, 2, dtype=torch.float64)}
OBS_MASK = {"a": torch.tensor([True, True, False, True, False]), "b": torch.tensor([True, False, True, True, False])}


@pytest.mark.parametrize("program", [story, positive_story], ids=["real", "positive"])
@pytest.mark.parametrize(
    "objective",
    [mm.ELBO(), mm.IWAE(num_particles=3), mm.IWAE(num_particles=3, gradient="stl")],
    ids=["elbo", "iwae", "stl"],
)
def test_trains_in_a_guide(program: Any, objective: Any) -> None:
    model, guide = guide_of(program, flow_of("coupling", "product"))
    loss = objective.differentiable_loss(model, guide, DATA, OBS_MASK)
    gradients = torch.autograd.grad(loss, list(guide.fusion.parameters()))
    assert loss.isfinite()
    assert all(g.isfinite().all() for g in gradients)
    assert any((g != 0).any() for g in gradients)


@pytest.mark.parametrize("layer", [T.planar, T.radial])
def test_elbo_needs_no_inverse_other_densities_do(layer: Any) -> None:
    model, guide = guide_of(story, Flow(fusion.Product(), [layer(2)]))
    assert mm.ELBO().differentiable_loss(model, guide, DATA, OBS_MASK).isfinite()
    q = mm.MultimodalVAE(model, guide).posterior(DATA, OBS_MASK)
    with pytest.raises(NotImplementedError, match=r"(Planar|Radial) has no inverse.*\. Fix: couplings"):
        q.log_prob(torch.zeros(2))


@pytest.mark.param_store
def test_stock_svi_trains_the_transforms() -> None:
    model, guide = guide_of(story, flow_of("coupling", "never"))
    before = [p.clone() for p in guide.fusion.parameters()]
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    for _ in range(2):
        svi.step(DATA, OBS_MASK)
    assert any(not torch.equal(a, b) for a, b in zip(before, guide.fusion.parameters(), strict=True))


def test_a_row_that_observes_nothing_adds_nothing() -> None:
    model, guide = guide_of(story, flow_of("spline", "product"))
    hidden = {m: torch.zeros(5, dtype=torch.bool) for m in "ab"}
    assert mm.ELBO().differentiable_loss(model, guide, DATA, hidden).detach() == 0
