"""Recorded steps equal eager ones: values, gradients, noise, schedules, whole runs."""

from __future__ import annotations

import pyro
import pytest
import torch
from torch import nn

import pyro_mmvae as mm
from pyro_mmvae.nn import FromCallable
from pyro_mmvae.objectives import Bernoulli, Each, Nothing, Observed, Term
from pyro_mmvae.training.traced import TracedLoss, chosen_loss, traceable

NAMES = ("a", "b", "c")
METHODS = {
    "mvae": lambda e, d: mm.MVAE(e, d, latent_dim=3, beta=0.7, warmup=5),
    "mvae_random": lambda e, d: mm.MVAE(e, d, latent_dim=3, k=1),
    "mmvae": lambda e, d: mm.MMVAE(e, d, latent_dim=3, num_particles=4),
    "mopoe": lambda e, d: mm.MoPoE(e, d, latent_dim=3),
    "mopoe_sampled": lambda e, d: mm.MoPoE(e, d, latent_dim=3, num_subsets=2),
    "mvtcae": lambda e, d: mm.MVTCAE(e, d, latent_dim=3),
    "jmvae": lambda e, d: mm.JMVAE(e, d, latent_dim=3, warmup=3),
    "gpoe": lambda e, d: mm.GPoE(e, d, latent_dim=3),
    "crmvae": lambda e, d: mm.CRMVAE(e, d, latent_dim=3),
    "mmjsd": lambda e, d: mm.MMJSD(e, d, latent_dim=3, warmup=5),
    "mcvae": lambda e, d: mm.MCVAE(e, d, latent_dim=3),
    "mcvae_multi_task": lambda e, d: mm.MCVAE(e, d, latent_dim=3, weights="multi_task"),
    "dvcca": lambda e, d: mm.DVCCA(e, d, latent_dim=3, fallback="drop"),
    "mmvm": lambda e, d: mm.MMVM(e, d, latent_dim=3, alpha_steps=4),
    "mmvm_mixture": lambda e, d: mm.MMVM(e, d, latent_dim=3, divergence="mixture", prior_weight=0.5),
    "codevae": lambda e, d: mm.CoDEVAE(e, d, latent_dim=3),
    "helvae": lambda e, d: mm.HELVAE(e, d, latent_dim=3),
    "helvae_mixture": lambda e, d: mm.HELVAE(e, d, latent_dim=3, form="mixture"),
    "maskedvae": lambda e, d: mm.MaskedVAE(None, d, latent_dim=3),
    "maskedvae_attention": lambda e, d: mm.MaskedVAE(None, d, latent_dim=3, pooling="attention", gradient="path"),
    "dmvae": lambda e, d: mm.DMVAE(e, d, latent_dim=2, **private()),
    "mmvaeplus": lambda e, d: mm.MMVAEPlus(e, d, latent_dim=2, num_particles=2, **private()),
    "cmvae": lambda e, d: mm.CMVAE(e, d, latent_dim=2, num_clusters=3, **private()),
}
PRIVATE = ("dmvae", "mmvaeplus", "cmvae")


def private() -> dict:
    """Private latents of one dimension."""
    own = {m: mm.nn.MLPEncoder(4, 1, hidden=(8,)) for m in NAMES}
    return {"private_encoders": own, "private_dims": dict.fromkeys(NAMES, 1)}


def build(method: str) -> mm.MultimodalVAE:
    size = 2 if method in PRIVATE else 3
    enc = {m: mm.nn.MLPEncoder(4, size, hidden=(8,), dropout=0.2) for m in NAMES}
    dec = {m: mm.nn.MLPDecoder(3, 4, hidden=(8,), likelihood="normal_learned") for m in NAMES}
    return METHODS[method](enc, dec).double()


def batch(seed: int, rows: int = 9) -> tuple[dict, dict]:
    g = torch.Generator().manual_seed(seed)
    data = {m: torch.randn(rows, 4, generator=g, dtype=torch.float64) for m in NAMES}
    mask = {m: torch.rand(rows, generator=g) > 0.4 for m in NAMES}
    mask["b"] = torch.rand(rows, 4, generator=g) > 0.4  # per feature
    return data, mask


def gradients(vae: mm.MultimodalVAE) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in vae.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("method", METHODS)
def test_recorded_steps_equal_eager_ones_at_equal_noise(method):
    vae = build(method)
    traced = TracedLoss(vae)
    for seed in range(4):  # fresh masks and annealing weights: nothing of the first batch may stick
        prepared = vae.model.prepare(*batch(seed, rows=5 if seed == 2 else 9))
        torch.manual_seed(seed)
        vae.zero_grad()
        loss = traced(*prepared, scale=0.5)
        found = gradients(vae)
        torch.manual_seed(seed)
        vae.zero_grad()
        expected = vae.objective.differentiable_loss(vae.model, vae.guide, *prepared) * 0.5
        expected.backward()
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-10, atol=1e-10)
        reference = gradients(vae)
        assert found.keys() == reference.keys()
        for name, gradient in reference.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-10, msg=name)
        vae.objective.advance()
    assert traced.graphs, "nothing was recorded"


def test_gradients_add_up_and_parameters_are_read_anew():
    vae = build("mvae")
    vae.eval()
    traced, prepared = TracedLoss(vae), vae.model.prepare(*batch(0))
    torch.manual_seed(0)
    traced(*prepared)
    once = gradients(vae)
    torch.manual_seed(0)
    traced(*prepared)
    for name, gradient in gradients(vae).items():
        torch.testing.assert_close(gradient, 2 * once[name])
    with torch.no_grad():
        for p in vae.parameters():
            p.mul_(1.5)
    torch.manual_seed(1)
    changed = traced(*prepared)
    torch.manual_seed(1)
    torch.testing.assert_close(changed, vae.objective.differentiable_loss(vae.model, vae.guide, *prepared).detach())


def test_recording_leaves_the_random_state_alone():
    vae = build("mmvae")
    prepared = vae.model.prepare(*batch(0))
    torch.manual_seed(3)
    first = TracedLoss(vae)(*prepared)
    after = torch.rand(1)
    torch.manual_seed(3)
    vae.objective.differentiable_loss(vae.model, vae.guide, *prepared)
    torch.testing.assert_close(torch.rand(1), after)
    assert first.isfinite()


class Own(nn.Module):
    """A user's story."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2, 3)

    def forward(self) -> None:
        z = pyro.sample("z", pyro.distributions.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", pyro.distributions.Normal(self.net(z), 1.0).to_event(1))


def test_what_is_not_recorded_by_itself():
    model = mm.observe(Own(), ("x",))
    own = mm.MultimodalVAE(model, mm.guides.Product(model, {"x": mm.nn.MLPEncoder(3, 2)}))
    assert "Own is no module of torch" in str(traceable(own))
    assert traceable(own, trusted=True) is None
    norm = build("mvae")
    norm.guide.encoders["z"]["a"].add_module("norm", nn.BatchNorm1d(3))
    assert "BatchNorm" in str(traceable(norm))
    assert traceable(build("mmvae")) is None
    with pytest.raises(ValueError, match=r"trace=True.*BatchNorm"):
        chosen_loss(norm, True, 1000)


def test_a_recorded_run_equals_an_eager_one():
    ds = mm.datasets.linear_gaussian(n=50, modalities={"a": 4, "b": 4, "c": 4}, seed=1).hide(0.3, seed=2)
    weights = []
    for trace in (True, False):
        torch.manual_seed(0)
        enc = {m: mm.nn.MLPEncoder(4, 3, hidden=(8,)) for m in NAMES}
        dec = {m: mm.nn.MLPDecoder(3, 4, hidden=(8,)) for m in NAMES}
        vae = mm.MVAE(enc, dec, latent_dim=3).double()
        mm.training.fit(vae, ds, epochs=3, batch_size=16, seed=5, progress=False, trace=trace)
        weights.append(torch.cat([p.detach().flatten() for p in vae.parameters()]))
    torch.testing.assert_close(*weights, rtol=1e-7, atol=1e-9)  # 12 steps of Adam on rounding differences of 1e-15


def selected(*terms: Term) -> mm.MultimodalVAE:
    base = build("jmvae")
    return mm.MultimodalVAE(base.model, base.guide, mm.ELBO(mm.Terms(terms))).double()


def of_step(context: mm.objectives.Context) -> torch.Tensor:
    """A user's curriculum: one modality at first, all of them later."""
    return context.observed.unsqueeze(0) & (torch.tensor([True, False, False]) | (context.step > 1))


@pytest.mark.parametrize(
    "terms",
    [
        (Term(Observed(), Bernoulli()),),
        (Term(Observed(), of_step),),
        (Term(of_step, Observed()),),
        (Term(Bernoulli(), Observed()), Term(Observed(), Nothing(), prior=Each())),
    ],
    ids=["random_target", "target_of_step", "source_of_step", "random_source"],
)
def test_sets_that_change_are_not_those_of_the_recording(terms):
    vae = selected(*terms)
    vae.eval()  # no dropout: equal noise whichever way the step runs
    traced = TracedLoss(vae)
    for seed in range(4):
        prepared = vae.model.prepare(*batch(seed))
        torch.manual_seed(seed)
        loss = traced(*prepared)
        torch.manual_seed(seed)
        expected = vae.objective.differentiable_loss(vae.model, vae.guide, *prepared)
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-10, atol=1e-10)
        vae.objective.advance()
    assert traced.graphs, "nothing was recorded"


def test_frozen_parameters_and_modes_are_read_anew():
    vae = build("mvae")
    traced = TracedLoss(vae)
    prepared = vae.model.prepare(*batch(0))
    traced(*prepared)
    vae.zero_grad()
    vae.guide.eval()
    first, second = traced(*prepared), traced(*prepared)
    assert len(traced.graphs) == 2  # the dropout of the first is not in the second
    assert not torch.equal(first, second)  # draws of z are
    frozen = next(vae.guide.parameters()).requires_grad_(False)
    vae.zero_grad()
    traced(*prepared)
    assert frozen.grad is None


class Shared(nn.Module):
    """Two parameters have the same gradient, a third one a single number's."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.zeros(3)) for _ in range(3))

    def forward(self, z: torch.Tensor) -> pyro.distributions.TorchDistribution:
        loc = z[..., :1] + (self.a + self.b) + self.c.sum()
        return pyro.distributions.Normal(loc, 1.0).to_event(1)


def test_every_gradient_has_its_own_memory():
    vae = mm.MVAE({"x": mm.nn.MLPEncoder(3, 2)}, {"x": Shared()}, latent_dim=2)
    TracedLoss(vae)(*vae.model.prepare({"x": torch.ones(5, 3)}))
    decoder = vae.model.story.program.decoders["x"]
    before = decoder.b.grad.clone()
    decoder.a.grad.mul_(2.0)
    assert torch.equal(decoder.b.grad, before)
    assert decoder.c.grad.mul_(2.0).isfinite().all()  # clipping writes into gradients


def test_functions_of_the_user_are_not_recorded_by_themselves():
    def story() -> None:
        z = pyro.sample("z", pyro.distributions.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", pyro.distributions.Normal(z, 1.0).to_event(1))

    model = mm.observe(story, ("x",))
    own = mm.MultimodalVAE(model, mm.guides.Product(model, {"x": mm.nn.MLPEncoder(2, 2)}))
    assert "function of yours" in str(traceable(own))
    assert traceable(own, trusted=True) is None
    likelihood = FromCallable(lambda raw: pyro.distributions.Normal(raw, 1.0))
    decoder = mm.nn.MLPDecoder(2, 3, likelihood=likelihood)
    assert "function of yours" in str(traceable(mm.MVAE({"x": mm.nn.MLPEncoder(3, 2)}, {"x": decoder}, latent_dim=2)))
