"""prune_clusters: planted clusters, the criterion against plain loops, the model afterwards."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_mmvae as mm
from pyro_mmvae.inference import generate, log_likelihood, predict_clusters, prune_clusters
from pyro_mmvae.stories import MixturePrior
from tests.inference.planted import (
    CENTERS,
    LINE,
    MAPS,
    cmvae_like,
    on_line,
    planted,
    prior_at,
    samples,
    seen_from,
)

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("family", ["normal", "laplace"])
def test_planted_clusters(family):
    """Pruning keeps one cluster for each real one, and every sample is found in its own."""
    prior = prior_at(CENTERS, family)
    model, guide = planted(prior)
    data, labels = samples()
    done = prune_clusters(model, guide, data)
    assert done.counts.tolist() == [8, 7, 6, 5, 4, 3, 2, 1]
    assert set(done.removed[:3].tolist()) == {0, 3, 7}
    assert torch.equal(prior.active, done.active) and int(done.active.sum()) == 3
    assert int(done.entropy[:-1].argmin()) == 5
    found = predict_clusters(model, guide, data)
    assert found.shape == (60,) and found.dtype == torch.long
    pairs = set(zip(found.tolist(), labels.tolist(), strict=True))
    assert len(pairs) == 3 and {c for c, _ in pairs} == set(done.active.nonzero().squeeze(-1).tolist())


def test_the_rest_goes_on_without_the_pruned():
    """Loss, likelihood and generation are those of the model with the kept clusters alone."""
    model, guide = planted(prior_at(CENTERS))
    data, _ = samples(12)
    kept = prune_clusters(model, guide, data).active
    z = generate(model, guide, 400, return_latents=True)["z"]
    nearest = torch.cdist(z, torch.tensor(CENTERS)[kept]).amin(-1)
    assert nearest.max() < 6.0  # 400 draws of a unit Gaussian in the plane: farther has probability 1e-5
    other, _ = planted(prior_at([c for c, k in zip(CENTERS, kept, strict=True) if k]))

    def same(data: Mapping[str, Tensor], obs_mask: Mapping[str, Tensor]) -> None:
        with pyro.plate("data", len(data["a"]), dim=-1):
            pyro.sample("z", dist.Normal(data["a"] @ torch.tensor(MAPS["a"]).inverse(), 0.1).to_event(1))

    values, losses = [], []
    for one in (model, other):
        torch.manual_seed(1)
        values.append(log_likelihood(one, same, data, num_particles=5))
        torch.manual_seed(1)
        losses.append(mm.IWAE(num_particles=2).differentiable_loss(one, same, data).detach())
    torch.testing.assert_close(*values, rtol=1e-12, atol=0)  # the same draws, a logsumexp of fewer terms
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0)


def test_everything_can_be_undone():
    prior = prior_at(CENTERS)
    model, guide = planted(prior)
    data, _ = samples(12)
    state = {name: x.clone() for name, x in model.state_dict().items()}
    first = prune_clusters(model, guide, data)
    again = prune_clusters(model, guide, data)
    assert again.counts.tolist() == [3, 2, 1] and torch.equal(again.active, first.active)
    prior.active.fill_(True)
    assert all(torch.equal(x, state[name]) for name, x in model.state_dict().items())


def naive_pruning(
    z: Tensor,  # shape: (K, M, B, D)
    observed: Tensor,  # shape: (M, B)
    centers: Tensor,
    logits: Tensor,
    beta: float,
) -> tuple[list[float], list[int]]:
    """The published procedure, one number at a time."""
    draws, modalities, rows, size = z.shape
    active = list(range(len(centers)))
    values, removed = [], []
    while True:
        log_norm = math.log(sum(math.exp(logits[c]) for c in active))
        mass = dict.fromkeys(active, 0.0)
        terms = []
        for n in range(rows):
            own, entropies, densities = [], [], []
            for m in range(modalities):
                if not observed[m, n]:
                    continue
                mean = dict.fromkeys(active, 0.0)
                for k in range(draws):
                    joint = {}
                    for c in active:
                        square = sum((float(z[k, m, n, d]) - float(centers[c, d])) ** 2 for d in range(size))
                        joint[c] = float(logits[c]) - log_norm - square / 2 - size * math.log(2 * math.pi) / 2
                    density = math.log(sum(math.exp(x) for x in joint.values()))
                    p = {c: math.exp(x - density) for c, x in joint.items()}
                    h = -sum(x * math.log(x) for x in p.values() if x > 0)
                    entropies.append(h / math.log(len(active)) if len(active) > 1 else 0.0)
                    densities.append(density / size)
                    mean = {c: mean[c] + p[c] / draws for c in active}
                own.append(mean)
            if not own:
                continue
            terms.append(beta * sum(entropies) / len(entropies) - sum(densities) / len(densities))
            votes = Counter(max(active, key=lambda c: (p[c], -c)) for p in own)
            winner = max(active, key=lambda c: (votes[c], -c))
            mass[winner] += max(sum(p[c] for p in own) / len(own) for c in active)
        values.append(sum(terms) / len(terms))
        if len(active) == 1:
            return values, removed
        removed.append(min(active, key=lambda c: (mass[c], c)))
        active.remove(removed[-1])


@pytest.mark.parametrize("num_samples", [1, 2])
@pytest.mark.parametrize("masked", [False, True], ids=["complete", "missing"])
def test_criterion_against_plain_loops(monkeypatch, masked, num_samples):
    """Overlapping clusters, uneven weights, wide experts; the loops get the draws that were made."""
    prior = MixturePrior(2, 5, family="normal", init_range=2.0)
    with torch.no_grad():
        prior.logits.copy_(torch.tensor([0.3, -0.2, 0.5, 0.0, -0.6]))
    model, guide = planted(prior, scale=1.0)
    data = {m: torch.randn(12, 2) for m in MAPS}
    mask = {m: torch.rand(12) < 0.5 if masked else torch.ones(12, dtype=torch.bool) for m in MAPS}
    if masked:
        mask["a"][0] = mask["b"][0] = mask["c"][0] = False
    drawn, plain = [], prior.log_components
    monkeypatch.setattr(prior, "log_components", lambda z: (drawn.append(z), plain(z))[1])
    done = prune_clusters(model, guide, data, mask, num_samples=num_samples, beta=2.5, batch_size=100)
    z = torch.stack(drawn).reshape(3, num_samples, 12, 2).transpose(0, 1)
    values, removed = naive_pruning(
        z, torch.stack([mask[m] for m in MAPS]), prior.loc.detach(), prior.logits.detach(), 2.5
    )
    torch.testing.assert_close(done.entropy, torch.tensor(values), rtol=1e-12, atol=1e-12)  # sums of a dozen terms
    assert done.removed.tolist() == removed
    best = min(range(4), key=lambda i: values[i])
    assert set(done.active.nonzero().squeeze(-1).tolist()) == set(range(5)) - set(removed[:best])


def test_mass_is_no_count():
    """Three samples that are hardly in their cluster weigh less than two that surely are in theirs."""
    model, guide = planted(prior_at([[0.0, 0.0], [1.0, 0.0], [8.0, 0.0]]), "a", scale=1e-9)
    z = on_line(*[0.45] * 3, *[1.5] * 4, *[8.0] * 2)  # p(c | z) is 0.51, 0.73 and 1 in their clusters
    assert prune_clusters(model, guide, seen_from({"a": z})).removed.tolist() == [0, 2]


def test_one_cluster_stays():
    model, guide = planted(prior_at(LINE[:1]))
    data, _ = samples(6)
    done = prune_clusters(model, guide, data)
    assert (done.counts.tolist(), done.removed.tolist(), done.active.tolist()) == ([1], [], [True])
    assert predict_clusters(model, guide, data).tolist() == [0] * 6


def test_a_training_step_after_pruning_leaves_inactive_clusters_alone():
    vae = cmvae_like()
    data = {m: 3 * torch.randn(40, 2) for m in MAPS}
    active = vae.prune_clusters(data).active
    vae.objective.differentiable_loss(vae.model, vae.guide, data).backward()
    prior = vae.model.story.program.prior
    assert (prior.loc.grad[~active] == 0).all() and (prior.logits.grad[~active] == 0).all()
    assert (prior.loc.grad[active] != 0).all() and (~active).any()
