"""The example stories: what they simulate, and that they are ordinary Pyro programs."""

from __future__ import annotations

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import Tensor

import pyro_mmvae as mm
from benchmarks.auto_guides.references import log_evidence
from tests.oracles.statistics import mean_and_se, repeat, within
from tests.stories.examples.cases import ALL, LOCAL, hand_guide, made, rows_of

pytestmark = [pytest.mark.usefixtures("float64"), pytest.mark.param_store]


@pytest.mark.parametrize("name", ALL)
def test_simulate(name: str) -> None:
    story = made(name)
    state = torch.get_rng_state()
    ds, again, other = story.simulate(200, seed=1), story.simulate(200, seed=1), story.simulate(200, seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert ds.truth is story and ds.modalities == story.modalities and len(ds) == 200
    for m in story.modalities:
        assert torch.equal(ds.obs_mask[m], again.obs_mask[m])
        assert torch.equal(ds.data[m], again.data[m]) or ds.data[m].isnan().any()
        torch.testing.assert_close(ds.data[m], again.data[m], rtol=0, atol=0, equal_nan=True)
        assert not torch.equal(ds.obs_mask[m], other.obs_mask[m])
    shown = torch.stack([x.reshape(200, -1).any(-1) for x in ds.obs_mask.values()], -1)
    assert 0.6 < shown.double().mean() <= 0.75 and shown.any(-1).all()
    assert all(bool(mask.all()) for mask in story.simulate(20, rate=0.0).obs_mask.values())
    with pytest.raises(ValueError, match="at least 1 row"):
        story.simulate(0)


@pytest.mark.parametrize("name", ALL)
def test_parameters_are_buffers_and_the_same_in_every_dtype(name: str) -> None:
    double = made(name)
    torch.set_default_dtype(torch.float32)
    single, other = made(name), type(double)(seed=1)
    assert not list(single.parameters()) and single.state_dict().keys() == double.state_dict().keys()
    floats = {key for key, value in single.state_dict().items() if value.is_floating_point()}
    assert all(single.state_dict()[key].dtype == torch.float32 for key in floats)
    assert all(torch.equal(single.state_dict()[key], double.state_dict()[key].float()) for key in floats)
    assert any(not torch.equal(single.state_dict()[key], other.state_dict()[key]) for key in floats)
    torch.set_default_dtype(torch.float64)


def one_hot(x: Tensor, classes: int) -> Tensor:
    return torch.nn.functional.one_hot(x.long(), classes).double()


def test_means_of_what_is_simulated() -> None:
    """Where the mean is known in closed form."""
    n = 20_000

    def drawn(name: str) -> dict[str, Tensor]:
        return made(name).simulate(n, seed=4, rate=0.0).data

    factors, data = made("FactorAnalysis"), drawn("FactorAnalysis")
    x = torch.cat([data[m] for m in factors.modalities], -1)
    within(*mean_and_se(x), factors.bias, sigmas=4.5)
    own = x - factors.bias
    exact = factors.weights @ factors.weights.mT + factors.noise.square().diag()
    within(*mean_and_se(own.unsqueeze(-1) * own.unsqueeze(-2)), exact, sigmas=5)
    shared, data = made("SharedPrivate"), drawn("SharedPrivate")
    for m in shared.modalities:
        within(*mean_and_se(data[m]), shared.of("bias", m), sigmas=4.5)
    mixture, data = made("DiscreteMixture"), drawn("DiscreteMixture")
    share = mixture.logits.softmax(-1)
    within(*mean_and_se(data["counts"]), share @ mixture.rates, sigmas=4.5)
    within(*mean_and_se(data["expression"]), share @ mixture.centers @ mixture.weights.mT + mixture.bias, sigmas=4.5)
    rates, data = made("GammaPoisson"), drawn("GammaPoisson")
    exact = rates.exposure * (rates.concentration / rates.rate)[rates.group]
    within(*mean_and_se(torch.cat([data["visits"], data["calls"]], -1)), exact, sigmas=4.5)
    labels, data = made("DirichletCategorical"), drawn("DirichletCategorical")
    exact = labels.concentration / labels.concentration.sum()
    within(*mean_and_se(one_hot(data["votes"], 4)), exact.expand(8, 4), sigmas=4.5)


@pytest.mark.parametrize(("name", "modality", "classes"), [("MixedTable", "kind", 4), ("MixedTable", "stage", 4)])
def test_frequencies_are_the_evidence_of_a_label(name: str, modality: str, classes: int) -> None:
    story = made(name)
    found = story.simulate(20_000, seed=4, rate=0.0).data[modality]
    rows = {m: torch.zeros(classes, *x.shape[1:]) for m, x in story.simulate(1).data.items()}
    rows[modality] = torch.arange(classes)
    masks = {m: torch.full((classes,), m == modality) for m in story.modalities}
    exact = log_evidence(story, rows, masks).exp()
    within(*mean_and_se(one_hot(found, classes)), exact, sigmas=4.5)
    assert abs(exact.sum() - 1) < 1e-6


@pytest.mark.parametrize("batch", [0, 1])
def test_frequencies_of_zeros_are_the_evidence_of_a_zero(batch: int) -> None:
    story = made("ZINB")
    ds = story.simulate(20_000, seed=4, rate=0.0)
    zeros = (ds.data["rna"][ds.data["batch"] == batch] == 0).double()
    data = {"rna": torch.zeros(6, 6), "protein": torch.zeros(6, 3), "batch": torch.full((6,), batch)}
    masks = {"rna": torch.eye(6, dtype=torch.bool), "protein": torch.zeros(6, dtype=torch.bool)}
    within(*mean_and_se(zeros), log_evidence(story, data, masks).exp(), sigmas=4.5)


def elbo_of(name: str, **options: int) -> Trace_ELBO:
    kind = TraceEnum_ELBO if name == "DiscreteMixture" else Trace_ELBO
    return kind(max_plate_nesting=1, **options)


@pytest.mark.parametrize("name", ALL)
def test_stock_elbo_with_a_guide_by_hand(name: str) -> None:
    """Finite, below the evidence, and blind to what lies under the mask."""
    model, guide = made(name).observed(), hand_guide(name)
    data, obs_mask = rows_of(name)
    elbo = elbo_of(name, num_particles=200, vectorize_particles=True)
    values = repeat(lambda: torch.tensor(-elbo.loss(model, guide, data, obs_mask)), 5)
    mean, se = mean_and_se(values)
    assert values.isfinite().all()
    assert mean - 4 * se < log_evidence(made(name), data, obs_mask).sum()
    other = {m: torch.where(x.isnan(), 7.0, x) if x.is_floating_point() else x for m, x in data.items()}
    found = []
    for values in (data, other):
        pyro.set_rng_seed(0)
        found.append(elbo.loss(model, guide, values, obs_mask))
    assert found[0] == found[1]


@pytest.mark.parametrize("name", LOCAL)
def test_importance_sampling_with_a_guide_by_hand(name: str) -> None:
    """Another proposal, and the library's own densities: enumeration, masks, particles."""
    data, obs_mask = rows_of(name)
    found = mm.inference.log_likelihood(
        made(name).observed(), hand_guide(name), data, obs_mask, num_particles=50_000, diagnostics=True
    )
    exact = log_evidence(made(name), data, obs_mask)
    assert found.value[-1] == 0
    # a logarithm's bias is se^2 / 2; rounding where the class is summed out and nothing is drawn
    error = torch.hypot(found.standard_error, torch.tensor(1e-9)) + found.standard_error**2 / 2
    within(found.value[:-1], error[:-1], exact[:-1], sigmas=4.5)
    assert found.standard_error.median() < 0.1


def test_private_latents_are_declared() -> None:
    assert made("SharedPrivate").observed().private == {"w_image": "image", "w_sound": "sound"}


def test_hospitals_names_the_missing_covariate() -> None:
    story = made("Hospitals")
    with pytest.raises(ValueError, match=r"data\['hospital'\] is missing"):
        story({"blood": torch.zeros(2, 3)})


def test_hospitals_scales_its_rows_up() -> None:
    """With size=N the plate counts a batch of B rows N / B times; the global latents once."""
    ds = made("Hospitals").simulate(10)
    model = mm.stories.examples.Hospitals(size=40)
    trace = pyro.poutine.trace(model).get_trace(ds.data, ds.obs_mask)
    assert trace.nodes["blood"]["scale"] == 4 and trace.nodes["effects"]["scale"] == 1
