"""Enumerated latents that the guide lacks: summed out exactly, drawn from their exact conditional."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_mmvae as mm
from pyro_mmvae.inference import impute, log_likelihood, predict
from tests.inference.programs import ClusterGuide, Clusters

pytestmark = pytest.mark.usefixtures("float64")


def cluster_case(rows: int = 300) -> tuple[Clusters, mm.stories.ObservedModel, dict, dict]:
    story = Clusters()
    model = mm.observe(story, ("x", "y", "label"))
    data = mm.inference.generate(model, None, rows)
    g = torch.Generator().manual_seed(1)
    masks = {m: torch.rand(rows, generator=g) < 0.7 for m in ("x", "y")}
    masks["label"] = torch.rand(rows, generator=g) < 0.3
    return story, model, {m: x.detach() for m, x in data.items()}, masks


def test_evidence_against_the_closed_form():
    story, model, data, masks = cluster_case(40)
    found = log_likelihood(model, ClusterGuide(), data, masks, num_particles=5_000, diagnostics=True)
    exact = story.log_joint(data, masks).logsumexp(-1).detach()
    exact = torch.where(torch.stack(list(masks.values())).any(0), exact, 0.0)
    assert ((found.value - exact).abs() <= 4.5 * found.standard_error + 1e-12).all()


def test_conditional_evidence():
    story, model, data, masks = cluster_case(40)
    found = log_likelihood(
        model, ClusterGuide(), data, masks, target={"label"}, num_particles=5_000, diagnostics=True
    )
    known = {**masks, "label": torch.zeros_like(masks["label"])}
    exact = story.log_joint(data, masks).logsumexp(-1) - story.log_joint(data, known).logsumexp(-1)
    assert ((found.value - exact.detach()).abs() <= 4.5 * found.standard_error + 1e-10).all()


def test_imputed_labels_follow_the_exact_posterior():
    """p(label | z, y) with z ~ q: averaged over draws it must be the enumerated conditional, not chance."""
    story, model, data, masks = cluster_case(30)
    masks["label"] = torch.zeros(30, dtype=torch.bool)
    draws = 4000
    found = predict(model, ClusterGuide(), data, masks, num_samples=draws, return_latents=True)
    z = found["z"]
    joint = story.logits.log_softmax(-1) + dist.Normal(story.centers, 0.8).log_prob(z.unsqueeze(-1))
    y = dist.Normal(story.levels, 0.5).log_prob(data["y"].unsqueeze(-1))
    cluster = (joint + torch.where(masks["y"].unsqueeze(-1), y, 0.0)).softmax(-1)
    label = cluster @ story.table.softmax(-1)
    for name, exact in (("c", cluster), ("label", label)):
        often = torch.stack([(found[name] == k).double().mean(0) for k in range(3)], -1)
        error = (often * (1 - often) / draws).sqrt() + 1e-3
        assert ((often - exact.mean(0)).abs() <= 5 * error).all()
    sharp = masks["x"] & masks["y"]
    right = (found["c"].mode(0).values == cluster.mean(0).argmax(-1))[sharp]
    assert right.double().mean() > 0.95


class VectorClusters(nn.Module):
    """A label, a vector around the label's corner, two modalities that know either."""

    corners = torch.tensor([[-6.0, 0.0], [0.0, 6.0], [6.0, 0.0]])

    def forward(self) -> None:
        c = pyro.sample("c", dist.Categorical(torch.ones(3) / 3), infer={"enumerate": "parallel"})
        z = pyro.sample("z", dist.Normal(self.corners[c], 1.0).to_event(1))
        pyro.sample("a", dist.Normal(z, 0.5).to_event(1))
        pyro.sample("y", dist.Categorical(logits=20 * torch.eye(3)[c]))


def test_labels_behind_a_vector_latent_with_a_library_guide():
    model = mm.observe(VectorClusters(), ("a", "y"))
    expert = mm.nn.MLPEncoder(2, 2, hidden=())
    with torch.no_grad():  # loc = x, scale = 1/2: the likelihood as an expert
        expert.head.linear.weight.copy_(torch.cat([torch.eye(2), torch.zeros(2, 2)]))
        expert.head.linear.bias.copy_(torch.tensor([0.0, 0.0, -0.7, -0.7]))
    guide = mm.guides.Product(model, {"a": expert})
    c = torch.randint(0, 3, (200,))
    x = VectorClusters.corners[c] + 1.1 * torch.randn(200, 2)
    draws = impute(model, guide, {"a": x}, num_samples=10)["y"]
    assert (draws == c).float().mean() > 0.97  # the corners are 8 standard deviations apart, chance is 1/3
    hidden = {"a": torch.zeros(200, dtype=torch.bool)}
    shown = predict(model, guide, {"a": x, "y": c}, hidden, num_samples=10)["a"]
    assert shown.shape == (10, 200, 2)


def test_imputation_keeps_labels():
    _, model, data, masks = cluster_case(50)
    full = impute(model, ClusterGuide(), data, masks, num_samples=3)
    assert (full["label"][:, masks["label"]] == data["label"][masks["label"]]).all()


def test_conflicting_evidence_does_not_underflow():
    """Two modalities that exclude each other's class by a thousand nats each, in float32."""

    class Sharp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.zero = nn.Parameter(torch.zeros(2, dtype=torch.float32))

        def forward(self) -> None:
            c = pyro.sample("c", dist.Categorical(logits=self.zero), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(self.zero[0], 1.0))
            for m in ("x", "y"):
                pyro.sample(m, dist.Normal(c.to(self.zero) * 45.0 + 0 * z, 1.0))

    def guide(data, obs_mask):
        with pyro.plate("data", len(data["x"])):
            pyro.sample("z", dist.Normal(torch.zeros(1), 1.0))

    data = {"x": torch.tensor([0.0], dtype=torch.float32), "y": torch.tensor([45.0], dtype=torch.float32)}
    found = log_likelihood(mm.observe(Sharp(), ("x", "y")), guide, data, num_particles=3)
    exact = -(45.0**2) / 2 - torch.log(torch.tensor(2 * torch.pi))  # both classes are equally bad
    torch.testing.assert_close(found, exact.float().reshape(1), rtol=1e-5, atol=0)


class Documents(nn.Module):
    """A topic per sample, a sense per word in a plate of its own, each observed through a Gaussian: all enumerated."""

    def __init__(self) -> None:
        super().__init__()
        self.topic = nn.Parameter(torch.tensor([0.3, -0.2]))
        self.sense = nn.Parameter(torch.randn(2, 3, generator=torch.Generator().manual_seed(2)))
        self.level = nn.Parameter(torch.tensor([-1.0, 0.4, 2.0]))

    def forward(self) -> None:
        pyro.sample("z", dist.Normal(self.topic.new_zeros(()), 1.0))
        t = pyro.sample("t", dist.Categorical(logits=self.topic), infer={"enumerate": "parallel"})
        words = []
        for i in range(2):
            s = pyro.sample(f"s{i}", dist.Categorical(logits=self.sense[t]), infer={"enumerate": "parallel"})
            words.append(pyro.sample(f"w{i}", dist.Normal(self.level[s], 0.7)))
        with pyro.plate("marks", 4, dim=-2):
            m = pyro.sample("m", dist.Categorical(logits=self.sense[t]), infer={"enumerate": "parallel"})
            marks = self.level.new_tensor([[0.1], [-1.0], [1.5], [0.0]])
            pyro.sample("seen", dist.Normal(self.level[m], 0.5), obs=marks)


def test_several_latents_and_plates():
    story = Documents()
    model = mm.observe(story, ("w0", "w1"))

    def guide(data, obs_mask):
        with pyro.plate("data", len(data["w0"]), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))

    data = {"w0": torch.tensor([0.2, -1.0, 3.0]), "w1": torch.tensor([1.0, 0.0, 0.0])}
    masks = {"w0": torch.tensor([True, True, True]), "w1": torch.tensor([True, False, True])}
    found = log_likelihood(model, guide, data, masks, num_particles=2)  # z plays no part: exact
    log_s = story.sense.log_softmax(-1)
    total = story.topic.log_softmax(-1)
    for m in ("w0", "w1"):
        word = (log_s + dist.Normal(story.level, 0.7).log_prob(data[m].reshape(-1, 1, 1))).logsumexp(-1)
        total = total + torch.where(masks[m].unsqueeze(-1), word, 0.0)
    marks = torch.tensor([0.1, -1.0, 1.5, 0.0]).reshape(-1, 1, 1)
    total = total + (log_s + dist.Normal(story.level, 0.5).log_prob(marks)).logsumexp(-1).sum(0)
    torch.testing.assert_close(found, total.logsumexp(-1).detach())
    drawn = predict(model, guide, data, masks, num_samples=6, return_latents=True)
    assert drawn["t"].shape == (6, 3) and drawn["m"].shape == (6, 4, 3)


def test_a_discrete_latent_in_the_guide_is_not_enumerated():
    story, model, data, masks = cluster_case(20)

    def guide(data, obs_mask):
        x = torch.where(obs_mask["x"], data["x"], 0.5)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, torch.where(obs_mask["x"], 0.7, 3.0)))
            pyro.sample("c", dist.Categorical(logits=torch.zeros(3)))

    found = log_likelihood(model, guide, data, masks, num_particles=40_000, diagnostics=True)
    exact = story.log_joint(data, masks).logsumexp(-1).detach()
    seen = torch.stack(list(masks.values())).any(0)
    assert ((found.value - exact).abs()[seen] <= 4.5 * found.standard_error[seen]).all()


def test_continuous_latents_that_the_guide_lacks_come_from_the_story():
    """x = z + u + noise, the guide knows z alone: p(x) = N(0, 3)."""

    class Two(nn.Module):
        def forward(self) -> None:
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            u = pyro.sample("u", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z + u, 1.0))

    def guide(data, obs_mask):
        with pyro.plate("data", len(data["x"])):
            pyro.sample("z", dist.Normal(data["x"] / 3, 1.0))

    data = {"x": torch.tensor([0.5, -2.0])}
    found = log_likelihood(mm.observe(Two(), ("x",)), guide, data, num_particles=50_000, diagnostics=True)
    exact = dist.Normal(0.0, torch.tensor(3.0).sqrt()).log_prob(data["x"])
    assert ((found.value - exact).abs() <= 4 * found.standard_error).all()


def test_unknown_guide_sites():
    _, model, data, masks = cluster_case(5)

    def guide(data, obs_mask):
        with pyro.plate("data", len(data["x"])):
            pyro.sample("zz", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"guide sites \['zz'\] are no latents"):
        log_likelihood(model, guide, data, masks)
