"""predict_clusters: votes, means, masks, any guide; errors of both verbs."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_mmvae as mm
from pyro_mmvae.inference import posterior, predict_clusters, prune_clusters
from tests.inference.planted import (
    CENTERS,
    LINE,
    MAPS,
    Linear,
    cmvae_like,
    on_line,
    planted,
    prior_at,
    samples,
    seen_from,
)

pytestmark = pytest.mark.usefixtures("float64")


def test_votes_and_means():
    """Modality by modality; unobserved ones have no say, whatever they hold; equals go to the smallest index."""
    prior = prior_at(LINE)
    model, guide = planted(prior, scale=1e-9)
    z = {
        "a": on_line(0.0, 1.9, 8.0, 8.0, 8.0),  # 1.9 lies just left of the middle between 0 and 4
        "b": on_line(0.0, 1.9, 4.0, torch.nan, torch.nan),
        "c": on_line(8.0, 4.0, torch.nan, 4.0, torch.nan),
    }
    mask = {m: ~x[:, 0].isnan() for m, x in z.items()}
    data = seen_from(z)
    vote, p = predict_clusters(model, guide, data, mask, return_probabilities=True)
    assert vote.tolist() == [0, 0, 1, 1, 2]
    assert predict_clusters(model, guide, data, mask, method="mean").tolist()[:2] == [0, 1]
    each = {m: prior.log_joint(x.nan_to_num()).softmax(-1) for m, x in z.items()}
    total = sum(torch.where(mask[m].unsqueeze(-1), each[m], 0.0) for m in MAPS)
    wanted = total / sum(m.long() for m in mask.values()).unsqueeze(-1)
    torch.testing.assert_close(p, wanted, rtol=0, atol=1e-7)  # experts of width 1e-9
    torch.testing.assert_close(p.sum(-1), torch.ones(5), rtol=0, atol=1e-12)
    for given, found in {"a": [0, 0, 2, 2, 2], "b": [0, 0, 1], "c": [2, 1]}.items():
        rows = len(found)
        assert predict_clusters(model, guide, data, mask, given={given}).tolist()[:rows] == found
    filled = {m: torch.where(mask[m].unsqueeze(-1), x, 1e30) for m, x in data.items()}
    assert torch.equal(predict_clusters(model, guide, filled, mask), vote)


def test_nothing_observed_gives_the_priors_weights():
    prior = prior_at(LINE)
    with torch.no_grad():
        prior.logits.copy_(torch.tensor([0.0, 1.0, 0.5]))
    model, guide = planted(prior)
    mask = {m: torch.tensor([False, True]) for m in MAPS}
    data = seen_from(dict.fromkeys(MAPS, on_line(0.0, 0.0)))
    for method in ("vote", "mean"):
        found, p = predict_clusters(model, guide, data, mask, method=method, return_probabilities=True)
        assert found.tolist() == [1, 0]
        torch.testing.assert_close(p[0], prior.logits.softmax(-1).detach())
    found, p = predict_clusters(model, guide, data, given=(), return_probabilities=True)
    assert found.tolist() == [1, 1]
    torch.testing.assert_close(p, prior.logits.softmax(-1).detach().expand(2, 3))
    prior.active[1] = False
    found, p = predict_clusters(model, guide, data, mask, return_probabilities=True)
    assert found.tolist() == [2, 0] and (p[:, 1] == 0).all()


def test_average_over_draws():
    """At a wide expert: the mean of p(c | z) over q(z | x), by quadrature."""
    prior = prior_at([[-1.0, 0.0], [1.0, 0.0]])
    model, guide = planted(prior, "a", scale=0.7)
    data = seen_from({"a": on_line(0.3)})
    _, p = predict_clusters(model, guide, data, num_samples=4000, return_probabilities=True)
    grid = torch.linspace(-7.0, 7.0, 4001)
    density = torch.distributions.Normal(0.0, 0.7).log_prob(grid).exp()
    exact = (density * torch.sigmoid(2 * (0.3 + grid))).sum() / density.sum()  # log odds of the two clusters: 2 z
    assert abs(float(p[0, 1] - exact)) < 4 * 0.5 / math.sqrt(4000)  # a probability's deviation is at most 1/2


def test_batches_seeds_and_datasets():
    model, guide = planted(prior_at(CENTERS), scale=1.0)
    data, labels = samples(30)
    mask = {m: torch.rand(30) < 0.6 for m in MAPS}

    def ask(*rows, **options):
        torch.manual_seed(3)
        return predict_clusters(model, guide, *rows, return_probabilities=True, **options)

    first = ask(data, mask, num_samples=3)
    assert all(torch.equal(a, b) for a, b in zip(ask(data, mask, num_samples=3), first, strict=True))
    dataset = mm.MultimodalDataset(data, obs_mask=mask)
    assert all(torch.equal(a, b) for a, b in zip(ask(dataset, num_samples=3), first, strict=True))
    model, guide = planted(prior_at(CENTERS), scale=1e-9)
    whole, blocks = ask(data, mask), ask(data, mask, batch_size=7)
    assert torch.equal(whole[0], blocks[0])
    torch.testing.assert_close(whole[1], blocks[1], rtol=0, atol=1e-6)  # experts of width 1e-9
    seen = torch.stack(list(mask.values())).any(0)
    near = {1: {1, 2}, 4: {4, 5}, 6: {6}}
    assert all(int(c) in near[int(t)] for c, t in zip(whole[0][seen], labels[seen], strict=True))
    one, many = (prune_clusters(planted(prior_at(CENTERS), scale=1e-9)[0], guide, data, mask, batch_size=b)
                 for b in (512, 7))  # fmt: skip
    torch.testing.assert_close(one.entropy, many.entropy, rtol=0, atol=1e-6)
    assert torch.equal(one.removed, many.removed)


@pytest.mark.parametrize("rule", [mm.fusion.Product(), mm.fusion.MixtureOfProducts(), mm.fusion.Mixture()])
def test_any_guide_with_any_fusion(rule):
    """What is asked of a guide is q(z | x_m), masked; one written by hand gives the same."""
    prior = prior_at(LINE)
    model, _ = planted(prior)
    guide = mm.guides.Fused(model, {m: Linear(MAPS[m], 1e-6, inverse=True) for m in MAPS}, fusion=rule)
    z = {"a": on_line(0.0, 4.0), "b": on_line(4.0, 4.0), "c": on_line(4.0, 8.0)}
    data = seen_from(z)
    mask = {m: torch.ones(2, dtype=torch.bool) for m in MAPS} | {"c": torch.tensor([True, False])}

    def by_hand(data: Mapping[str, Tensor], obs_mask: Mapping[str, Tensor]) -> None:
        rows = [obs_mask[m].reshape(2, -1).any(-1) for m in MAPS]
        assert sum(int(x.any()) for x in rows) <= 1  # never more than one modality at a time
        loc = sum(
            torch.where(seen.unsqueeze(-1), data[m] @ torch.tensor(MAPS[m]).inverse(), 0.0)
            for m, seen in zip(MAPS, rows, strict=True)
        )
        with pyro.plate("data", 2, dim=-1):
            pyro.sample("z", dist.Normal(loc, 1e-6).to_event(1))

    for asked in (guide, by_hand):
        assert predict_clusters(model, asked, data, mask).tolist() == [1, 1]
        assert predict_clusters(model, asked, data, mask, given={"a"}).tolist() == [0, 1]


def test_modalities_without_an_encoder_have_no_say():
    model, _ = planted(prior_at(LINE))
    guide = mm.guides.Fused(model, {"a": Linear(MAPS["a"], 1e-9, inverse=True)}, fusion=mm.fusion.Mixture())
    z = {"a": on_line(8.0, 8.0), "b": on_line(0.0, 0.0), "c": on_line(0.0, 0.0)}
    mask = {m: torch.tensor([m == "a", True]) for m in MAPS}
    _, p = predict_clusters(model, guide, seen_from(z), mask, return_probabilities=True)
    torch.testing.assert_close(p[0], p[1], rtol=0, atol=1e-7)
    mask["a"][1] = False
    assert predict_clusters(model, guide, seen_from(z), mask).tolist() == [2, 0]  # the prior's equal weights


class Two(nn.Module):
    """Two latents of one size, with clusters as asked."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self) -> None:
        u = pyro.sample("u", self.first())
        v = pyro.sample("v", self.second())
        pyro.sample("a", dist.Normal(v + 0 * u, 1.0).to_event(1))


def two(first: nn.Module, second: nn.Module) -> tuple[mm.stories.ObservedModel, mm.guides.Fused]:
    model = mm.observe(Two(first, second), ("a",))
    expert = Linear([[1.0, 0.0], [0.0, 1.0]], 1e-6)
    return model, mm.guides.Fused(model, {s: {"a": expert} for s in ("u", "v")}, fusion=mm.fusion.Mixture())


def test_which_latent():
    normal, clusters, other = mm.stories.NormalPrior(2), prior_at(LINE), prior_at(LINE[::-1])
    data = {"a": on_line(8.0)}
    for first, second in ((normal, clusters), (clusters, normal)):
        model, guide = two(first, second)
        assert predict_clusters(model, guide, data).tolist() == [2]
    model, guide = two(clusters, other)
    assert predict_clusters(model, guide, data, latent="u").tolist() == [2]
    assert predict_clusters(model, guide, data, latent="v").tolist() == [0]
    with pytest.raises(ValueError, match=r"several have clusters, \['u', 'v'\]. Fix: latent='u'"):
        predict_clusters(model, guide, data)
    with pytest.raises(ValueError, match="latent: 'z' has no MixturePrior"):
        prune_clusters(model, guide, data, latent="z")
    guide = mm.guides.Fused(model, {"u": {"a": Linear([[1.0, 0.0], [0.0, 1.0]], 1.0)}})
    lacking = pyro.poutine.block(guide, hide=["v"])
    with pytest.raises(ValueError, match="the guide lacks the latent 'v'"):
        predict_clusters(model, lacking, data, latent="v")


def test_errors():
    data, _ = samples(6)
    model, guide = planted(prior_at(LINE))
    for verb in (predict_clusters, prune_clusters):
        with pytest.raises(ValueError, match=r"no latent of the story has clusters; its latents are \['z'\]"):
            verb(*planted(mm.stories.NormalPrior(2)), data)
        with pytest.raises(ValueError, match="num_samples"):
            verb(model, guide, data, num_samples=0)
        with pytest.raises(ValueError, match="given"):
            verb(model, guide, data, given={"d"})

    def native(data: Mapping[str, Tensor], obs_mask: Mapping[str, Tensor]) -> None:
        with pyro.plate("data", 6), mm.handlers.observe(data, obs_mask, ("a",)):
            pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    with pytest.raises(NotImplementedError, match="has no story"):
        predict_clusters(native, guide, {"a": data["a"]})
    with pytest.raises(ValueError, match="method: expected 'vote' or 'mean', got 'median'"):
        predict_clusters(model, guide, data, method="median")
    for beta in (-1.0, math.nan):
        with pytest.raises(ValueError, match="beta"):
            prune_clusters(model, guide, data, beta=beta)
    nothing = dict.fromkeys(MAPS, torch.zeros(6, dtype=torch.bool))
    with pytest.raises(ValueError, match="no row observes any of"):
        prune_clusters(model, guide, data, nothing)


def test_verbs_of_a_method_and_saving(tmp_path):
    """The thin methods, modes and gradients as they were, ``active`` saved and loaded."""
    vae = cmvae_like().train()
    data = {m: 3 * torch.randn(40, 2) for m in MAPS}
    done = vae.prune_clusters(data, beta=2.5)
    assert vae.training and vae.guide.training and 1 < int(done.active.sum()) < 6
    vae.save(tmp_path / "vae")
    loaded = mm.load(tmp_path / "vae")
    prior = loaded.model.story.program.prior
    assert torch.equal(prior.active, done.active) and not prior.active.requires_grad
    answers = []
    for v in (vae, loaded):
        torch.manual_seed(2)
        answers.append((v.predict_clusters(data), *v.predict_clusters(data, return_probabilities=True)))
    assert all(torch.equal(a, b) for a, b in zip(*answers, strict=True))
    assert (answers[0][2][:, ~done.active] == 0).all() and not answers[0][2].requires_grad
    assert torch.equal(posterior(loaded.model, loaded.guide, data).mean, vae.posterior(data).mean)


def test_another_default_device_changes_nothing():
    model, guide = planted(prior_at(CENTERS), scale=1e-9)
    data, _ = samples(12)
    wanted = predict_clusters(model, guide, data)
    try:
        torch.set_default_device("meta")  # a tensor created without a device would have no content
        found = predict_clusters(model, guide, data)
        done = prune_clusters(model, guide, data)
    finally:
        torch.set_default_device(None)
    assert torch.equal(found, wanted)
    assert {x.device.type for x in (done.counts, done.entropy, done.removed, done.active)} == {"cpu"}
    assert int(done.active.sum()) == 3
