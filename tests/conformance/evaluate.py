"""Evaluating a case: at given noise, at quadrature nodes, over many draws; losses with their gradients.

Test layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

import pyro_mmvae as mm
from tests.conformance.problems import Problem
from tests.oracles.terms import quadrature

Tensors = Mapping[str, Tensor]


def value(
    vae: mm.MultimodalVAE,
    data: Mapping[str, Tensor | None],
    obs_mask: Mapping[str, Tensor | None] | None,
    eps: Tensors | None = None,
    *,
    objective: Any = None,
    seed: int = 3,
) -> Tensor:  # shape: (B,)
    """The objective per sample; at the given noise, if any, and one random state."""
    torch.manual_seed(seed)
    own = vae.objective if objective is None else objective
    with mm.handlers.noise({} if eps is None else eps):
        return own.per_sample(vae.model, vae.guide, data, obs_mask)


def sigma_points(p: Problem) -> dict[str, Tensor]:  # shapes: (P, 1, 1, D)
    """
    Noise whose plain mean integrates every quadratic function exactly: +-sqrt(D) along each axis of all latents.

    With Gaussian posteriors and likelihoods every term is one.
    """
    sizes = {"z": p.latent_dim} | {f"z_{m}": q[0].shape[1] for m, q in p.private.items()}
    total = sum(sizes.values())
    axes = torch.eye(total) * total**0.5
    points = torch.cat([axes, -axes])[:, None, None, :]
    return dict(zip(sizes, points.split(list(sizes.values()), -1), strict=True))


def by_sigma_points(vae: mm.MultimodalVAE, p: Problem, objective: Any = None) -> Tensor:  # shape: (B,)
    """The expectation of an ELBO, exactly: the points are its particles."""
    own = vae.objective if objective is None else objective
    eps = sigma_points(p)
    own.num_particles = len(eps["z"])
    return value(vae, p.data, p.obs_mask, eps, objective=own)


def by_quadrature(vae: mm.MultimodalVAE, p: Problem, points: int = 801) -> Tensor:  # shape: (B,)
    """The expectation of an estimate with one particle: the nodes are copies of the rows; one latent dimension."""
    node, weight = quadrature(torch.zeros(1), torch.ones(1), points)
    batch = len(p.sets)
    data = {m: x.repeat(points, 1) for m, x in p.data.items()}
    mask = {m: a.repeat(points, *(1,) * (a.dim() - 1)) for m, a in p.obs_mask.items()}
    found = value(vae, data, mask, {"z": node.repeat_interleave(batch, 0)})
    return weight @ found.reshape(points, batch)


def by_draws(
    vae: mm.MultimodalVAE, p: Problem, copies: int, *, objective: Any = None, seed: int = 3
) -> Tensor:  # shape: (copies, B)
    """Independent estimates with the library's own draws, from copies of the rows."""
    data = {m: x.repeat(copies, 1) for m, x in p.data.items()}
    mask = {m: a.repeat(copies, *(1,) * (a.dim() - 1)) for m, a in p.obs_mask.items()}
    with torch.no_grad():
        return value(vae, data, mask, objective=objective, seed=seed).reshape(copies, -1)


def gradients(vae: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """The gradient of every parameter; zeros where the loss does not depend on one."""
    names, parameters = zip(*vae.named_parameters(), strict=True)
    if not loss.requires_grad:
        return {n: torch.zeros_like(w) for n, w in zip(names, parameters, strict=True)}
    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return {n: torch.zeros_like(w) if g is None else g for n, w, g in zip(names, parameters, found, strict=True)}


def select(tensors: Tensors, rows: Any) -> dict[str, Tensor]:
    """Rows of data or masks."""
    return {m: x[rows] for m, x in tensors.items()}


def select_noise(eps: Tensors, rows: Any) -> dict[str, Tensor]:
    """The noise of some rows, with or without particles."""
    return {site: e[..., rows, :] for site, e in eps.items()}


def last_subset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random subsets become the last one, or none at a random rate, so that batches of any size draw alike."""

    def rand(*size: Any, **options: Any) -> Tensor:
        shape = torch.Size(size if isinstance(size[0], int) else size[0])
        if len(shape) == 3:
            return torch.linspace(0.1, 0.9, shape[1])[:, None].expand(shape).clone()
        return torch.full(shape, 0.5)

    monkeypatch.setattr(torch, "rand", rand)
