"""Conjugate closed forms against grids, sequential prediction and enumeration."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.distributions import Dirichlet, Gamma, NegativeBinomial, Poisson, kl_divergence

from .conjugate import DirichletCategorical, GammaPoisson

EXACT = {"rtol": 0.0, "atol": 1e-10}  # closed forms in float64
COUNTS = {
    "a": torch.tensor([[3.0, 1.0], [7.0, torch.nan], [torch.nan] * 2]),
    "b": torch.tensor([[4.0], [2.0], [torch.nan]]),
}
SEEN = {m: ~x.isnan() for m, x in COUNTS.items()}
POISSON = GammaPoisson(2.5, 0.8, {"a": torch.tensor([0.5, 2.0]), "b": torch.tensor([1.5])})
LABELS = {"a": torch.tensor([[0, 2], [1, -1], [-1, -1]]), "b": torch.tensor([[2], [1], [-1]])}
LABELED = {m: x >= 0 for m, x in LABELS.items()}
CATEGORICAL = DirichletCategorical(torch.tensor([0.6, 1.5, 2.2]), {"a": 2, "b": 1})


def test_counts_equal_grid_integration() -> None:
    # in u = log z the integrand is smooth and vanishes at both ends
    u = torch.linspace(-25, 6, 20001, dtype=torch.float64)
    z, step = u.exp(), u[1] - u[0]
    a, b = POISSON.posterior(COUNTS, SEEN)
    evidence = POISSON.log_evidence(COUNTS, SEEN)
    for row in range(3):
        log_joint = Gamma(POISSON.concentration, POISSON.rate).log_prob(z) + u
        for name, exposure in POISSON.exposure.items():
            for d in range(len(exposure)):
                if SEEN[name][row, d]:
                    log_joint = log_joint + Poisson(exposure[d] * z).log_prob(COUNTS[name][row, d].double())
        torch.testing.assert_close(evidence[row], torch.logsumexp(log_joint, 0) + step.log(), rtol=0.0, atol=1e-9)
        weight = torch.softmax(log_joint, 0)
        torch.testing.assert_close(a[row] / b[row], weight @ z, rtol=0.0, atol=1e-9)
        torch.testing.assert_close(a[row] / b[row] ** 2, weight @ (z - a[row] / b[row]) ** 2, rtol=0.0, atol=1e-9)


def test_evidence_of_counts_is_a_chain_of_negative_binomials() -> None:
    a, b = POISSON.concentration, POISSON.rate
    total = torch.zeros((), dtype=torch.float64)
    for name, exposure in POISSON.exposure.items():
        for d, e in enumerate(exposure):
            x = COUNTS[name][0, d].double()
            total = total + NegativeBinomial(a, probs=e / (b + e)).log_prob(x)
            a, b = a + x, b + e
    torch.testing.assert_close(POISSON.log_evidence(COUNTS, SEEN)[0], total, **EXACT)


def test_elbo_of_counts_plus_divergence_is_the_evidence() -> None:
    q = torch.tensor([1.3, 4.0, 2.0], dtype=torch.float64), torch.tensor([0.4, 1.1, 3.0], dtype=torch.float64)
    posterior = POISSON.posterior(COUNTS, SEEN)
    gap = kl_divergence(Gamma(*q), Gamma(*posterior))
    assert (gap > 0.01).all()
    torch.testing.assert_close(POISSON.elbo(*q, COUNTS, SEEN) + gap, POISSON.log_evidence(COUNTS, SEEN), **EXACT)
    torch.testing.assert_close(POISSON.kl(q, posterior), gap, **EXACT)


def test_evidence_of_labels_is_a_chain_of_urn_draws() -> None:
    alpha = CATEGORICAL.concentration.clone()
    total = torch.zeros((), dtype=torch.float64)
    for label in (0, 2, 2):
        total = total + (alpha[label] / alpha.sum()).log()
        alpha[label] += 1
    torch.testing.assert_close(CATEGORICAL.log_evidence(LABELS, LABELED)[0], total, **EXACT)
    torch.testing.assert_close(CATEGORICAL.posterior(LABELS, LABELED)[0], alpha, **EXACT)


def test_evidence_of_all_label_sequences_adds_up_to_one() -> None:
    rows = torch.tensor(list(itertools.product(range(3), repeat=3)))
    value = CATEGORICAL.log_evidence({"a": rows[:, :2], "b": rows[:, 2:]})
    torch.testing.assert_close(torch.logsumexp(value, 0), torch.zeros((), dtype=torch.float64), **EXACT)


def test_elbo_of_labels_plus_divergence_is_the_evidence() -> None:
    q = torch.tensor([[1.3, 0.7, 2.0], [3.0, 2.0, 1.0], [0.5, 0.9, 4.0]], dtype=torch.float64)
    posterior = CATEGORICAL.posterior(LABELS, LABELED)
    gap = kl_divergence(Dirichlet(q), Dirichlet(posterior))
    assert (gap > 0.01).all()
    value = CATEGORICAL.elbo(q, LABELS, LABELED) + gap
    torch.testing.assert_close(value, CATEGORICAL.log_evidence(LABELS, LABELED), **EXACT)
    torch.testing.assert_close(CATEGORICAL.kl(q, posterior), gap, **EXACT)


@pytest.mark.parametrize("model", [POISSON, CATEGORICAL], ids=["counts", "labels"])
def test_nothing_observed_is_the_prior_and_zero(model: GammaPoisson | DirichletCategorical) -> None:
    data, mask = (COUNTS, SEEN) if isinstance(model, GammaPoisson) else (LABELS, LABELED)
    assert model.log_evidence(data, mask)[2].abs() < 1e-12
    posterior = model.posterior(data, mask)
    first = posterior[0] if isinstance(posterior, tuple) else posterior
    assert torch.equal(first[2], model.concentration)
