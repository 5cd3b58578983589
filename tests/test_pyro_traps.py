"""Ten traps of Pyro 1.9: the stock way fails as described, ours does not.

Each test shows both sides, so that it also tells when Pyro has changed.
"""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, RenyiELBO, ReweightedWakeSleep, Trace_ELBO
from torch import Tensor, nn

import pyro_mmvae as mm
from pyro_mmvae.handlers import marginalize_missing, noise
from pyro_mmvae.stories import data_plate

pytestmark = [pytest.mark.usefixtures("float64"), pytest.mark.param_store]

B, K = 4, 5
SEEN = torch.tensor([True, False, True, False])


def renyi(**options: Any) -> RenyiELBO:
    return RenyiELBO(alpha=0, num_particles=K, vectorize_particles=True, max_plate_nesting=1, **options)


def story() -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(1.5 * z, 0.5))


class Guide(nn.Module):
    """q(z) = N(loc, 0.6), row by row."""

    def __init__(self, size: int | None = None) -> None:
        super().__init__()
        self.loc, self.size = nn.Parameter(torch.linspace(-1.0, 1.0, B)), size

    def forward(self, *args: Any) -> None:
        with data_plate(B, self.size):
            pyro.sample("z", dist.Normal(self.loc, 0.6))


def iwae_by_hand(loc: Tensor, x: Tensor, eps: Tensor) -> Tensor:  # shape: (B,)
    z = loc + 0.6 * eps
    weight = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(1.5 * z, 0.5).log_prob(x)
    return (weight - dist.Normal(loc, 0.6).log_prob(z)).logsumexp(0) - math.log(K)


def test_1_imputed_rows_are_not_scored() -> None:
    """Native obs_mask with a guide that lacks ``x_unobserved``: one too much per missing element in d / d log sigma."""
    log_sigma, x = torch.zeros((), requires_grad=True), torch.randn(B)

    def native(*args: Any) -> None:
        with pyro.plate("data", B):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, log_sigma.exp()), obs=x, obs_mask=SEEN)

    def observed() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, log_sigma.exp()))

    elbo = Trace_ELBO(num_particles=20_000, vectorize_particles=True, max_plate_nesting=1)
    slopes = []
    with pyro.validation_enabled(False):
        for model in (native, marginalize_missing(native), mm.observe(observed, ("x",))):
            torch.manual_seed(0)
            loss = elbo.differentiable_loss(model, Guide(), {"x": x}, {"x": SEEN})
            slopes.append(torch.autograd.grad(loss, log_sigma)[0])
    assert abs(slopes[0] - slopes[2] - 2) < 0.1
    torch.testing.assert_close(slopes[1], slopes[2], rtol=0, atol=0.05)


@pytest.mark.parametrize("content", [torch.nan, torch.inf])
def test_2_masked_content_leaves_gradients_finite(content: float) -> None:
    x = torch.where(SEEN, torch.randn(B), content)
    slopes = []
    for ours in (False, True):
        scale = torch.tensor(0.7, requires_grad=True)

        def program(scale: Tensor = scale) -> None:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, scale, validate_args=False))

        def stock(*args: Any, program: Any = program) -> None:
            masked = poutine.condition(poutine.mask(program, mask=SEEN), {"x": x})
            with pyro.plate("data", B):
                masked()

        model = mm.observe(program, ("x",)) if ours else stock
        with pyro.validation_enabled(ours):
            loss = Trace_ELBO().differentiable_loss(model, Guide(), {"x": x}, {"x": SEEN})
        slopes.append(torch.autograd.grad(loss, scale)[0])
    assert not slopes[0].isfinite() and slopes[1].isfinite()


def test_3_a_global_factor_leaves_weights_per_sample() -> None:
    x, eps, guide = torch.randn(B), torch.randn(K, B), Guide()

    def model(data: Any, obs_mask: Any) -> None:
        pyro.deterministic("unit", torch.ones(()))
        with pyro.plate("data", B), mm.handlers.observe(data, obs_mask, ("x",)):
            story()

    right = iwae_by_hand(guide.loc, x, eps)
    with noise({"z": eps}):
        wrong = -renyi().loss(model, guide, {"x": x}, {})
    with noise({"z": eps.unsqueeze(1)}):
        ours = mm.IWAE(num_particles=K).per_sample(model, guide, {"x": x}, {})
    torch.testing.assert_close(ours, right)
    assert abs(wrong - right.sum()) > 0.01


def test_4_the_scale_stays_outside_the_logarithm() -> None:
    x, eps, size = torch.randn(B), torch.randn(K, B), 100 * B
    guide, model = Guide(size), mm.observe(story, ("x",), size=size)
    right = 100 * iwae_by_hand(guide.loc, x, eps).sum()
    with noise({"z": eps}):
        wrong = -renyi().loss(model, guide, {"x": x})
    with noise({"z": eps.unsqueeze(1)}):
        ours = -mm.IWAE(num_particles=K).loss(model, guide, {"x": x})
    assert abs(ours - right) < 1e-8 * abs(right) and abs(wrong - right) > 0.01 * abs(right)


def test_5_draws_without_a_gradient_are_refused() -> None:
    """An expert index in the guide gets exactly zero gradient from RenyiELBO; ours says what to use."""
    logits = torch.zeros(B, 2, requires_grad=True)

    def switching() -> None:
        c = pyro.sample("c", dist.Categorical(torch.ones(2)))
        pyro.sample("x", dist.Normal(3.0 * c, 1.0))

    def guide(*args: Any) -> None:
        pyro.param("unused", torch.zeros(()))
        with pyro.plate("data", B):
            pyro.sample("c", dist.Categorical(logits=logits))

    model, data = mm.observe(switching, ("x",)), {"x": torch.full((B,), 3.0)}
    renyi().loss_and_grads(model, guide, data)
    assert logits.grad is None or (logits.grad == 0).all()
    for objective in (mm.IWAE(num_particles=K), mm.ELBO()):
        with pytest.raises(NotImplementedError, match=r"'c'.*no reparametrized draws(.|\n)*TraceGraph_ELBO"):
            objective.per_sample(model, guide, data)


def test_6_one_weight_per_sample_and_particle() -> None:
    """Wake-sleep weighs whole minibatches; our bound of a batch is the sum of the bounds of its rows."""
    x, eps, guide = torch.randn(B), torch.randn(K, B), Guide()
    model, objective = mm.observe(story, ("x",)), mm.IWAE(num_particles=K)
    right = iwae_by_hand(guide.loc, x, eps)
    with noise({"z": eps.unsqueeze(1)}):
        assert abs(-objective.loss(model, guide, {"x": x}) - right.sum()) < 1e-10
    wake = ReweightedWakeSleep(num_particles=K, vectorize_particles=True, max_plate_nesting=1)

    def registered(*args: Any) -> None:
        pyro.param("unused", torch.zeros(()))
        guide()

    with noise({"z": eps}):
        theta, _ = wake.loss(model, registered, {"x": x})
    assert abs(theta + right.sum()) > 0.1


def test_7_a_second_model_in_one_process_is_trained() -> None:
    def stock() -> tuple[Any, Any, nn.Module]:
        net = nn.Linear(1, 1)

        def model(x: Tensor) -> None:
            pyro.module("net", net)
            with pyro.plate("data", B):
                pyro.sample("x", dist.Normal(net(torch.ones(B, 1)).squeeze(-1), 1.0), obs=x)

        return model, lambda x: None, net

    def ours() -> tuple[Any, Any, nn.Module]:
        net = nn.Linear(1, 1)

        def program() -> None:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(net(z.unsqueeze(-1)).squeeze(-1), 1.0))

        model = mm.observe(program, ("x",), modules={"net": net})
        return lambda x: model({"x": x}), lambda x: Guide()(), net

    moved = {}
    for name, make in (("stock", stock), ("ours", ours)):
        for _ in range(2):
            model, guide, net = make()
            before = net.weight.clone()
            SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step(torch.ones(B))
            moved.setdefault(name, []).append(bool((net.weight != before).any()))
    assert moved == {"stock": [True, False], "ours": [True, True]}


def test_8_mixtures_draw_from_their_own_row() -> None:
    loc = torch.arange(8.0).reshape(4, 2, 1) * 100  # (B, E, D): row b has 200 b and 200 b + 100
    stock = dist.MixtureOfDiagNormals(loc, 0.1 * torch.ones(4, 2, 1), torch.zeros(4, 2))
    ours = mm.distributions.Mixture(dist.Normal(loc.movedim(1, 0), 0.1).to_event(1), torch.full((2, 4), 0.5).log())
    rows = [((q.rsample((4,)).squeeze(-1) + 50) / 200).floor() for q in (stock, ours)]
    assert (rows[0] != torch.arange(4.0)).any() and (rows[1] == torch.arange(4.0)).all()


def test_9_mixtures_keep_finite_gradients_in_single_precision() -> None:
    finite = []
    for ours in (False, True):
        loc = torch.randn(2, 3, 200, dtype=torch.float32).requires_grad_()
        scale = torch.full((2, 3, 200), 0.01, dtype=torch.float32)
        if ours:
            q = mm.distributions.Mixture(dist.Normal(loc, scale).to_event(1), torch.full((2, 3), 0.5).log().float())
        else:
            logits = torch.zeros(3, 2, dtype=torch.float32)
            q = dist.MixtureOfDiagNormals(loc.movedim(0, 1), scale.movedim(0, 1), logits)
        (slope,) = torch.autograd.grad(q.rsample().square().sum(), loc)
        finite.append(bool(slope.isfinite().all()))
    assert finite == [False, True]


def test_10_a_saved_model_needs_no_param_store(tmp_path: Any) -> None:
    """The store is read back by pickle; ours is a plain state_dict, which torch loads without running code."""

    class Payload:
        def __reduce__(self) -> tuple[Any, Any]:
            return (touch, (str(tmp_path / "ran"),))

    torch.save({"params": {}, "constraints": {}, "evil": Payload()}, tmp_path / "store")
    with pytest.raises(AssertionError, match="malformed"):  # said after the payload has run
        pyro.get_param_store().load(tmp_path / "store")
    assert (tmp_path / "ran").exists()
    (tmp_path / "ran").unlink()
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(tmp_path / "store", weights_only=True)
    assert not (tmp_path / "ran").exists()
    model = mm.observe(mm.stories.Shared({"a": mm.nn.MLPDecoder(2, 3)}, mm.stories.NormalPrior(2)), ("a",))
    torch.save(model.state_dict(), tmp_path / "weights")
    model.load_state_dict(torch.load(tmp_path / "weights", weights_only=True))
    assert not [name for name in pyro.get_param_store() if name.startswith("pyro_mmvae")]


def touch(path: str) -> dict[str, Any]:
    open(path, "w").close()
    return {}
