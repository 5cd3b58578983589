"""log_likelihood against closed forms, for every mask, with guides that are wrong on purpose."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_mmvae as mm
from pyro_mmvae.inference import log_likelihood
from pyro_mmvae.inference._memory import Allocated
from pyro_mmvae.inference._weights import Weights
from tests.inference.programs import LinearStory, linear_pair
from tests.oracles.cases import Case, make_case

pytestmark = pytest.mark.usefixtures("float64")
MASKS = [(1, False), (2, False), (3, False), (3, True)]


def hidden(case: Case, *names: str) -> dict[str, Tensor]:
    return {m: torch.zeros_like(mask) if m in names else mask for m, mask in case.obs_mask.items()}


@pytest.mark.parametrize(("modalities", "per_feature"), MASKS)
def test_exact_guide_needs_one_particle(modalities, per_feature):
    case = make_case(modalities, 2, per_feature=per_feature)
    model, guide = linear_pair(case.model)
    found = log_likelihood(model, guide, case.data, case.obs_mask, num_particles=1)
    torch.testing.assert_close(found, case.model.log_evidence(case.data, case.obs_mask), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("modalities", "per_feature"), MASKS)
def test_wrong_guide_converges(modalities, per_feature):
    case = make_case(modalities, 2, per_feature=per_feature)
    model, guide = linear_pair(case.model, 0.3, 1.3)
    found = log_likelihood(model, guide, case.data, case.obs_mask, num_particles=50_000, diagnostics=True)
    error = (found.value - case.model.log_evidence(case.data, case.obs_mask)).abs()
    assert (error <= 4 * found.standard_error).all()
    assert found.standard_error[0] == 0 and found.value[0] == 0  # the row that observes nothing
    assert (found.standard_error[1:] < 0.02).all() and (found.standard_error[1:] > 1e-4).all()
    assert (found.pareto_k[1:] < 0.7).all() and found.pareto_k[0].isnan()


def test_standard_error_is_right():
    case = make_case(2, 1)
    model, guide = linear_pair(case.model, 0.4, 1.4)
    rows = torch.arange(1, 4).repeat(100)  # a hundred repeats of three rows, each with particles of its own
    data, masks = ({m: x[rows] for m, x in d.items()} for d in (case.data, case.obs_mask))
    found = log_likelihood(model, guide, data, masks, num_particles=500, diagnostics=True)
    z = (found.value - case.model.log_evidence(data, masks)) / found.standard_error
    z = z.reshape(100, 3)
    assert ((z.std(0) > 0.8) & (z.std(0) < 1.2)).all()
    assert (z.mean(0).abs() < 0.4).all()  # four standard errors of a mean of 100


@pytest.mark.parametrize("per_feature", [False, True])
@pytest.mark.parametrize(("target", "given"), [({"b"}, None), ({"a", "c"}, {"b"}), ({"a"}, {"c"}), ({"b"}, ())])
def test_conditional(per_feature, target, given):
    case = make_case(3, 2, per_feature=per_feature)
    model, guide = linear_pair(case.model, 0.2, 1.2)
    known = set(case.obs_mask) - target if given is None else set(given)
    masks = hidden(case, *(set(case.obs_mask) - known)), hidden(case, *(set(case.obs_mask) - target))
    exact = case.model.conditional_log_evidence(case.data, masks[1], masks[0])
    found = log_likelihood(
        model, guide, case.data, case.obs_mask, target=target, given=given, num_particles=20_000, diagnostics=True
    )
    assert ((found.value - exact).abs() <= 4 * found.standard_error + 1e-12).all()
    unscored = torch.tensor([not target & set(s) for s in case.sets])
    assert (found.value[unscored] == 0).all()


def test_given_alone_scores_the_rest():
    case = make_case(2, 1)
    model, guide = linear_pair(case.model)
    a = log_likelihood(model, guide, case.data, case.obs_mask, given={"a"}, num_particles=1)
    b = log_likelihood(model, guide, case.data, case.obs_mask, target={"b"}, num_particles=1)
    torch.testing.assert_close(a, b)


def test_masked_content_does_not_matter():
    case = make_case(3, 2, per_feature=True)
    model, guide = linear_pair(case.model, 0.3, 1.3)
    values = []
    for junk in (float("nan"), float("inf"), 1e30, 0.0):
        data = {m: torch.where(case.data[m].isnan(), junk, x) for m, x in case.complete.items()}
        pyro.set_rng_seed(1)
        values.append(log_likelihood(model, guide, data, case.obs_mask, num_particles=50))
    assert all(torch.equal(v, values[0]) for v in values)


def test_observed_content_does():
    case = make_case(2, 2)
    model, guide = linear_pair(case.model)
    moved = {m: x + 1.0 for m, x in case.data.items()}
    a = log_likelihood(model, guide, case.data, case.obs_mask, num_particles=1)
    b = log_likelihood(model, guide, moved, case.obs_mask, num_particles=1)
    assert (a != b)[1:].all()


def test_rows_do_not_depend_on_each_other():
    case = make_case(3, 2)
    model, guide = linear_pair(case.model)  # exact: no noise to compare at
    whole = log_likelihood(model, guide, case.data, case.obs_mask, num_particles=3)
    blocks = log_likelihood(model, guide, case.data, case.obs_mask, num_particles=3, batch_size=3)
    torch.testing.assert_close(whole, blocks)


def test_a_dataset_is_batched_by_itself():
    ds = mm.datasets.linear_gaussian(20, 2, latent_dim=1).hide(0.4, seed=1)
    weights = {m: w for m, w in ds.truth.weights.items()}
    case = make_case(1)
    truth = type(case.model)(weights, ds.truth.bias, ds.truth.noise, torch.zeros(1), torch.ones(1))
    model, guide = linear_pair(truth)
    found = log_likelihood(model, guide, ds, num_particles=2, batch_size=7)
    torch.testing.assert_close(found, ds.truth.log_likelihood(ds.data, ds.obs_mask))
    with pytest.raises(TypeError, match="dataset has its own"):
        log_likelihood(model, guide, ds, ds.obs_mask)


def test_only_scored_decoders_run():
    case = make_case(3, 1)
    story = LinearStory(case.model)
    model = mm.observe(story, case.model.modalities)
    _, guide = linear_pair(case.model)
    log_likelihood(model, guide, case.data, case.obs_mask, target={"b"}, given={"a"}, num_particles=5)
    assert story.calls["a"] > 0 and story.calls["b"] > 0 and story.calls["c"] == 0


@pytest.mark.parametrize("memory_gb", [1e-4, 1e-3])
def test_chunks_give_the_same_estimate_within_memory(memory_gb):
    case = make_case(3, 2)
    rows = torch.arange(len(case.sets)).repeat(6)
    data, masks = ({m: x[rows] for m, x in d.items()} for d in (case.data, case.obs_mask))
    model, guide = linear_pair(case.model, 0.2, 1.2)
    exact = case.model.log_evidence(data, masks)
    with Allocated() as made:
        found = log_likelihood(model, guide, data, masks, num_particles=20, diagnostics=True, memory_gb=memory_gb)
    assert ((found.value - exact).abs() <= 6 * found.standard_error + 1e-12).all()
    floor = 30_000  # below lie the data and the sums themselves
    assert made.largest <= max(memory_gb * 1e9, floor)


def test_large_k_stays_in_memory():
    case = make_case(2, 2)
    model, guide = linear_pair(case.model, 0.1, 1.1)
    with Allocated() as made:
        log_likelihood(model, guide, case.data, case.obs_mask, num_particles=50_000, memory_gb=0.003, diagnostics=True)
    assert made.largest < 3e6 / 2  # never two of them at a time


def test_chunked_equals_whole_at_equal_noise():
    w = torch.randn(60, 4)
    one, many = Weights(60, tail=True), Weights(60, tail=True)
    one.add(w)
    for part in w.split(7):
        many.add(part)
    for name in ("value", "standard_error", "ess", "pareto_k"):
        torch.testing.assert_close(getattr(many, name), getattr(one, name))
    torch.testing.assert_close(one.value, w.exp().mean(0).log())
    torch.testing.assert_close(one.standard_error, w.exp().std(0) / w.exp().mean(0) / 60**0.5)


class Gaussians(nn.Module):
    """Two modalities, library decoders with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.dec = nn.ModuleDict({m: mm.nn.MLPDecoder(2, 3, hidden=(8,), dropout=0.5) for m in ("p", "q")})

    def forward(self) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        for m, dec in self.dec.items():
            pyro.sample(m, dec(z))


def test_library_guide_evaluation_mode_and_state():
    model = mm.observe(Gaussians(), ("p", "q"))
    encoders = {m: mm.nn.MLPEncoder(3, 2, hidden=(8,), dropout=0.5) for m in ("p", "q")}
    guide = mm.guides.Product(model, encoders)
    guide.encoders.eval()
    model.train()
    before = {m: m.training for m in [*model.modules(), *guide.modules()]}
    data = {m: torch.randn(4, 3) for m in ("p", "q")}
    pyro.set_rng_seed(0)
    a = log_likelihood(model, guide, data, num_particles=30)
    pyro.set_rng_seed(0)
    b = log_likelihood(model, guide, data, num_particles=30)
    assert torch.equal(a, b) and not a.requires_grad
    assert before == {m: m.training for m in [*model.modules(), *guide.modules()]}
    assert not pyro.get_param_store().keys()


def test_mixture_posteriors_are_scored_as_mixtures():
    case = make_case(2, 1)
    model = mm.observe(LinearStory(case.model), ("a", "b"))

    class Expert(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            matrix, offset, scale = case.model.expert(name, 0.4, 1.5)
            self.matrix, self.offset, self.scale = matrix, offset, scale

        def forward(self, x: Tensor) -> dist.TorchDistribution:
            loc = x @ self.matrix.T + self.offset
            return dist.Normal(loc, self.scale.expand(loc.shape)).to_event(1)

    guide = mm.guides.Fused(model, {m: Expert(m) for m in ("a", "b")}, fusion=mm.fusion.Mixture())
    found = log_likelihood(model, guide, case.data, case.obs_mask, num_particles=20_000, diagnostics=True)
    error = (found.value - case.model.log_evidence(case.data, case.obs_mask)).abs()
    assert (error <= 4 * found.standard_error + 1e-12).all() and found.standard_error[1:].max() < 0.05


class Pixels(nn.Module):
    """A story whose likelihood is no density."""

    def __init__(self) -> None:
        super().__init__()
        self.dec = mm.nn.MLPDecoder(1, 2, likelihood="relaxed_bernoulli", hidden=())

    def forward(self) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("x", self.dec(z))


def test_pseudo_densities_warn_once():
    model = mm.observe(Pixels(), ("x",))
    guide = mm.guides.Product(model, {"x": mm.nn.MLPEncoder(2, 1, hidden=())})
    with pytest.warns(UserWarning, match=r"\['x'\] are no densities") as seen:
        log_likelihood(model, guide, {"x": torch.rand(3, 2)}, num_particles=10)
    assert len(seen) == 1


def test_globals_are_drawn_per_particle_and_not_scored():
    """x ~ N(z + g, 1), z ~ N(0, 1): with the guide's g ~ N(m, s^2), p(x) is N(m, 2 + s^2)."""
    x = torch.tensor([0.3, -1.2, 2.0])

    def model(data, obs_mask):
        g = pyro.sample("g", dist.Normal(0.0, 10.0))
        with pyro.plate("data", 3), mm.handlers.observe(data, obs_mask, ["x"]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + g, 1.0))

    def guide(data, obs_mask):
        pyro.sample("g", dist.Normal(0.7, 0.4))
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(data["x"] / 2 - 0.3, 1.0))

    found = log_likelihood(model, guide, {"x": x}, num_particles=40_000, diagnostics=True)
    exact = dist.Normal(0.7, torch.tensor(2 + 0.4**2).sqrt()).log_prob(x)
    assert ((found.value - exact).abs() <= 4 * found.standard_error).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"given": {"nope"}}, ValueError, r"given: \['nope'\].*known are \['a', 'b'\]"),
        ({"target": {"nope"}}, ValueError, r"target: \['nope'\].*known are \['a', 'b'\]"),
        ({"target": "a"}, TypeError, "set of names"),
        ({"target": {"a"}, "given": {"a"}}, ValueError, "both given and target"),
        ({"num_particles": 0}, ValueError, "num_particles: expected at least 1, got 0"),
        ({"memory_gb": 0.0}, ValueError, "memory_gb"),
        ({"batch_size": 0}, ValueError, "batch_size"),
    ],
)
def test_bad_options(options, error, message):
    case = make_case(2)
    model, guide = linear_pair(case.model)
    with pytest.raises(error, match=message):
        log_likelihood(model, guide, case.data, case.obs_mask, **options)


def test_observed_nan_is_an_error():
    case = make_case(2)
    model, guide = linear_pair(case.model)
    with pytest.raises(ValueError, match="NaN"):
        log_likelihood(model, guide, case.data)
    with pytest.raises(ValueError, match="nothing to condition on"):
        log_likelihood(model, guide)
