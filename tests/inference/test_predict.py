"""predict and impute: moments against closed forms, what is kept, what is run, what is passed on."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_mmvae as mm
from pyro_mmvae.inference import impute, posterior, predict
from pyro_mmvae.inference._anatomy import anatomy
from pyro_mmvae.inference._batch import prepared
from tests.inference.programs import LinearStory, linear_pair
from tests.oracles.cases import make_case

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("per_feature", [False, True])
def test_draws_have_the_predictive_moments(per_feature):
    case = make_case(3, 2, per_feature=per_feature)
    model, guide = linear_pair(case.model)
    draws = predict(model, guide, case.data, case.obs_mask, num_samples=20_000)
    means = predict(model, guide, case.data, case.obs_mask, num_samples=20_000, noise=False)
    loc, cov = case.model.posterior(case.data, case.obs_mask)
    for m, w in case.model.weights.items():
        exact = loc @ w.T + case.model.bias[m]
        spread = (w @ cov @ w.T).diagonal(dim1=-2, dim2=-1)
        for found, variance in ((draws[m], spread + case.model.noise[m] ** 2), (means[m], spread)):
            assert found.shape == (20_000, *exact.shape)
            assert ((found.mean(0) - exact).abs() <= 4.5 * (variance / 20_000).sqrt()).all()
            # the variance of a sample variance of Gaussians is 2 v^2 / n
            assert ((found.var(0) - variance).abs() <= 4.5 * variance * (2 / 20_000) ** 0.5).all()


def test_given_and_target():
    case = make_case(3, 1)
    story = LinearStory(case.model)
    model = mm.observe(story, case.model.modalities)
    _, guide = linear_pair(case.model)
    found = predict(model, guide, case.data, case.obs_mask, given={"a"}, target={"c"}, num_samples=20_000)
    assert set(found) == {"c"} and story.calls == {"a": 0, "b": 0, "c": 1}
    only_a = {m: mask & (m == "a") for m, mask in case.obs_mask.items()}
    loc, _ = case.model.posterior(case.data, only_a)
    exact = loc @ case.model.weights["c"].T + case.model.bias["c"]
    assert ((found["c"].mean(0) - exact).abs() <= 4.5 * found["c"].std(0) / 20_000**0.5).all()


def test_latents_alone_run_no_decoder():
    case = make_case(2, 2)
    story = LinearStory(case.model)
    model = mm.observe(story, case.model.modalities)
    _, guide = linear_pair(case.model)
    found = predict(model, guide, case.data, case.obs_mask, target=(), return_latents=True, num_samples=7)
    assert set(found) == {"z"} and found["z"].shape == (7, 4, 2) and set(story.calls.values()) == {0}


@pytest.mark.parametrize("noise", [True, False])
@pytest.mark.parametrize("per_feature", [False, True])
def test_impute_keeps_what_is_observed(per_feature, noise):
    case = make_case(3, 2, per_feature=per_feature)
    model, guide = linear_pair(case.model)
    before = {m: x.clone() for m, x in case.data.items()}
    full = impute(model, guide, case.data, case.obs_mask, num_samples=4, noise=noise)
    part = impute(model, guide, case.data, case.obs_mask, num_samples=4, noise=noise, given={"a"})
    for m, x in full.items():
        seen = (case.obs_mask[m] if per_feature else case.obs_mask[m].unsqueeze(-1)).expand_as(case.data[m])
        assert torch.equal(x[:, seen], case.data[m][seen].expand(4, -1)) and x.isfinite().all()
        assert not (x[:, ~seen][0] == x[:, ~seen][1]).any()
        assert torch.equal(case.data[m].isnan(), before[m].isnan())
        assert (part[m][:, seen] == case.data[m][seen]).all() == (m == "a")


def test_masked_content_does_not_matter():
    case = make_case(3, 2, per_feature=True)
    model, guide = linear_pair(case.model)
    outcomes = []
    for junk in (float("nan"), float("inf"), 1e30, 0.0):
        data = {m: torch.where(case.data[m].isnan(), junk, x) for m, x in case.complete.items()}
        pyro.set_rng_seed(1)
        p, i = (f(model, guide, data, case.obs_mask, return_latents=True) for f in (predict, impute))
        q = posterior(model, guide, data, case.obs_mask)
        outcomes.append([*p.values(), *i.values(), q.mean, q.sample()])
    assert all(torch.equal(a, b) for other in outcomes for a, b in zip(other, outcomes[0], strict=True))


def test_blocks_of_rows():
    ds = mm.datasets.linear_gaussian(11, {"a": 2, "b": 3}, latent_dim=1).hide(0.4, seed=1)
    truth = type(make_case(1).model)(ds.truth.weights, ds.truth.bias, ds.truth.noise, torch.zeros(1), torch.ones(1))
    model, guide = linear_pair(truth)
    whole = predict(model, guide, ds, noise=False, num_samples=4000)
    parts = predict(model, guide, ds, noise=False, num_samples=4000, batch_size=4, return_latents=True)
    assert parts["z"].shape == (4000, 11, 1)
    for m in ds.modalities:
        error = (parts[m].var(0) + whole[m].var(0)).div(4000).sqrt()
        assert ((parts[m].mean(0) - whole[m].mean(0)).abs() <= 5 * error).all()


class Feeding(nn.Module):
    """x ~ N(z, 1); y ~ N(2 x, 0.5): the second modality hears the first."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def forward(self) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        x = pyro.sample("x", dist.Normal(z, self.one))
        pyro.sample("y", dist.Normal(2 * x, 0.5))
        pyro.sample("other", dist.Normal(z, 1.0))


def feeding_guide(data, obs_mask):
    """The exact posterior given x; given y alone, x integrated: y ~ N(2 z, 4.25)."""
    x, y = data["x"], data["y"]
    from_y = 2 / (4 + 4.25) * y, torch.tensor((1 + 4 / 4.25) ** -0.5)
    loc = torch.where(obs_mask["x"], x / 2, torch.where(obs_mask["y"], from_y[0], 0.0))
    scale = torch.where(obs_mask["x"], 0.5**0.5, torch.where(obs_mask["y"], from_y[1], 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, scale))


def test_known_values_are_passed_on():
    model = mm.observe(Feeding(), ("x", "y", "other"))
    data = {"x": torch.tensor([1.5, 7.0]), "y": torch.tensor([0.0, 0.0])}
    masks = {"x": torch.tensor([True, False]), "y": torch.tensor([False, False])}
    found = predict(model, feeding_guide, data, masks, num_samples=20_000, target={"y"})["y"]
    assert set(predict(model, feeding_guide, data, masks, target={"y"})) == {"y"}
    assert abs(found[:, 0].mean() - 3.0) < 4 * 0.5 / 20_000**0.5  # from the known x = 1.5, not from a fresh one
    assert abs(found[:, 0].std() - 0.5) < 0.02
    assert abs(found[:, 1].std() - (4 * 2 + 0.25) ** 0.5) < 0.1  # from drawn x
    both = predict(model, feeding_guide, data, masks, num_samples=20_000)
    assert abs(both["x"][:, 0].std() - 1.5**0.5) < 0.03  # the observed modality itself is drawn afresh


def test_which_modality_feeds_which():
    model = mm.observe(Feeding(), ("x", "y", "other"))
    look = anatomy(prepared(model, None, {"x": torch.zeros(2)}, None))
    assert look.feeds == {"z": frozenset(), "x": frozenset(), "y": frozenset({"x"}), "other": frozenset()}
    assert look.feeding({"other"}, model.modalities) == frozenset()


def test_a_story_that_cannot_be_followed_feeds_everything():
    class Stubborn(Feeding):
        def forward(self) -> None:
            z = pyro.sample("z", dist.Normal(0.0, self.one))
            x = pyro.sample("x", dist.Normal(z, 1.0))
            if type(x) is not torch.Tensor:
                raise TypeError("plain tensors only")
            pyro.sample("y", dist.Normal(2 * x, 0.5))

    model = mm.observe(Stubborn(), ("x", "y"))
    look = anatomy(prepared(model, None, {"x": torch.zeros(2)}, None))
    assert look.feeding({"y"}, ("x", "y")) == {"x", "y"}


def test_observed_but_not_given_does_not_leak():
    model = mm.observe(Feeding(), ("x", "y", "other"))
    guide = mm.guides.Fused(model, {"z": {m: mm.nn.MLPEncoder((), 1, hidden=(4,)) for m in ("x", "y", "other")}})
    outcomes = []
    for hidden in (0.0, 9.0):
        data = {"x": torch.full((3,), hidden), "y": torch.full((3,), hidden), "other": torch.ones(3)}
        pyro.set_rng_seed(0)
        drawn = predict(model, guide, data, given={"other"}, return_latents=True)
        q = posterior(model, guide, data, given={"other"})
        score = mm.inference.log_likelihood(model, guide, data, given=(), target={"other"}, num_particles=20)
        outcomes.append([*drawn.values(), q.mean, score])
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))


def test_a_missing_cause_is_integrated_over():
    """log p(y) = N(0, 4 * 2 + 0.25) where x is missing; with x held at a constant it would be N(0, 0.25)."""
    model = mm.observe(Feeding(), ("x", "y", "other"))
    y = torch.tensor([0.5, -3.0])
    found = mm.inference.log_likelihood(model, feeding_guide, {"y": y, "x": y}, {"x": torch.zeros(2, dtype=torch.bool)},
                                        num_particles=50_000, target={"y"}, diagnostics=True)  # fmt: skip
    exact = dist.Normal(0.0, torch.tensor(8.25).sqrt()).log_prob(y)
    assert ((found.value - exact).abs() <= 4 * found.standard_error).all()


class Words(nn.Module):
    """A plate inside the story: a latent for each of three words, their sum observed."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def forward(self) -> None:
        with pyro.plate("words", 3, dim=-2):
            w = pyro.sample("w", dist.Normal(torch.zeros(2), self.one).to_event(1))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + w[..., 0].sum(-2, keepdim=True), 1.0))


def words_guide(data, obs_mask):
    with pyro.plate("data", len(data["x"]), dim=-1):
        with pyro.plate("words", 3, dim=-2):
            pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("z", dist.Normal(0.0, 1.0))


def test_plates_inside_the_story():
    """x is a sum of four N(0, 1) and noise: log p(x) = N(0, 5), with the prior as the guide."""
    model = mm.observe(Words(), ("x",))
    data = {"x": torch.tensor([0.3, -1.0, 2.0, 0.0])}
    found = mm.inference.log_likelihood(model, words_guide, data, num_particles=50_000, diagnostics=True)
    exact = dist.Normal(0.0, torch.tensor(5.0).sqrt()).log_prob(data["x"])
    assert ((found.value - exact).abs() <= 4 * found.standard_error).all()
    draws = predict(model, words_guide, data, num_samples=5, return_latents=True)
    assert draws["x"].shape == (5, 4) and draws["z"].shape == (5, 4) and draws["w"].shape == (5, 3, 4, 2)
    blocks = predict(model, words_guide, data, num_samples=5, return_latents=True, batch_size=3)
    assert blocks["w"].shape == (5, 3, 4, 2)


class Counts(nn.Module):
    """Class numbers, a one-hot vector, counts and a covariate."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(1, 4)

    def forward(self, dose) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        logits = self.net(z + dose.unsqueeze(-1))
        pyro.sample("token", dist.Categorical(logits=logits.unsqueeze(-2).expand(*logits.shape[:-1], 3, 4)).to_event(1))
        pyro.sample("kind", dist.OneHotCategorical(logits=logits))
        pyro.sample("count", dist.Poisson(logits.exp()).to_event(1))


def test_class_probabilities_and_dtypes():
    model = mm.observe(Counts(), ("token", "kind", "count"))
    encoders = {"z": {"count": mm.nn.MLPEncoder(4, 1, hidden=(3,))}}
    guide = mm.guides.Product(model, encoders)
    data = {"dose": torch.tensor([0.1, 0.2]), "count": torch.ones(2, 4), "token": torch.tensor([[1, 2, 3], [0, 0, 0]])}
    masks = {"token": torch.tensor([[True, False, True], [False] * 3])}
    means = predict(model, guide, data, masks, noise=False, num_samples=5)
    assert means["token"].shape == (5, 2, 3, 4) and means["kind"].shape == (5, 2, 4)
    torch.testing.assert_close(means["token"].sum(-1), torch.ones(5, 2, 3))
    full = impute(model, guide, data, masks, noise=False, num_samples=5)
    assert full["token"].shape == (5, 2, 3) and full["token"][:, 0, ::2].tolist() == [[1, 3]] * 5
    assert not full["token"].is_floating_point()
    drawn = impute(model, guide, data, masks, num_samples=5)
    assert torch.equal(drawn["count"], data["count"].expand(5, 2, 4)) and drawn["kind"].sum(-1).eq(1).all()


def test_all_missing_rows_come_from_the_prior():
    case = make_case(2, 1)
    model = mm.observe(LinearStory(case.model), ("a", "b"))
    encoders = {m: mm.nn.MLPEncoder(case.data[m].shape[1], 1) for m in ("a", "b")}
    guide = mm.guides.Product(model, encoders)
    z = predict(model, guide, case.data, case.obs_mask, num_samples=20_000, return_latents=True, target=())["z"][:, 0]
    loc, scale = case.model.prior
    assert abs(z.mean() - loc) < 4.5 * scale / 20_000**0.5 and abs(z.std() - scale) < 0.03


@pytest.mark.parametrize("verb", [predict, impute])
def test_bad_options(verb):
    case = make_case(2)
    model, guide = linear_pair(case.model)
    with pytest.raises(ValueError, match=r"target: \['nope'\].*known are \['a', 'b'\]"):
        verb(model, guide, case.data, case.obs_mask, target={"nope"})
    with pytest.raises(ValueError, match="num_samples: expected at least 1, got 0"):
        verb(model, guide, case.data, case.obs_mask, num_samples=0)
