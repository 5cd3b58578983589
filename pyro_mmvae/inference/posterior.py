"""Posteriors q(z | x_S) as distributions.

Layer: inference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from pyro.distributions import Empirical, TorchDistribution
from torch import Tensor

from pyro_mmvae.distributions import Mixture, map_params
from pyro_mmvae.inference._batch import Batch, Masks, Values, evaluation, known_names, positive, prepared, split
from pyro_mmvae.inference._reported import reported
from pyro_mmvae.inference._rows import in_rows
from pyro_mmvae.inference._run import encode, global_latents, local_latents, run_guide
from pyro_mmvae.masks import ObsMask

__all__ = ["posterior"]


def posterior(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Values = None,
    obs_mask: Masks = None,
    *,
    given: Collection[str] | None = None,
    latents: str | None = None,
    num_samples: int = 100,
    batch_size: int = 512,
) -> Any:  # batch_shape: (B,), or {site: such a Distribution}
    r"""
    The guide's posterior q(z | x_S) of each sample.

    S is what is observed of ``given``; where that is nothing, library guides give the story's prior. A latent whose
    distribution depends on other sampled latents (a hierarchy) is given with these summed out by Monte Carlo,

    .. math:: q(z_1 \mid x_S) \approx \frac1N \sum_n q(z_1 \mid z_2^{(n)}, x_S), \qquad z_2^{(n)} \sim q(z_2 \mid x_S)

    as an equal-weight :class:`~pyro_mmvae.distributions.Mixture` over ``num_samples`` draws. Draws from its latents
    one by one are not joint draws: for those use ``predict(..., target=(), return_latents=True)``. Latents of the
    story that the guide lacks are not in the result. A global latent (outside the plate ``data``) has no rows: its
    batch shape is that of its own plates; one that an AutoGuide makes of other draws is given as ``pyro.distributions.
    Empirical`` over ``num_samples`` draws, all dimensions its event's.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> import pyro_mmvae as mm
        >>> def story():
        ...     z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...     pyro.sample("x", dist.Normal(z, 1.0).to_event(1))
        >>> model = mm.observe(story, ("x",))
        >>> guide = mm.guides.Product(model, {"x": mm.nn.MLPEncoder(2, 2)})
        >>> q = posterior(model, guide, {"x": torch.zeros(3, 2)})
        >>> q.batch_shape, q.mean.shape, q.sample((7,)).shape
        (torch.Size([3]), torch.Size([3, 2]), torch.Size([7, 3, 2]))

    :param data: modality -> Tensor ``(B, *event)`` with the covariates, or a dataset (which has its masks).
    :param obs_mask: modality -> bool ``(B,)`` or ``(B, *event)``, True = observed; None: everything.
    :param given: modalities to condition on; default: all that is observed.
    :param latents: name of a latent site, or "all" for a mapping; default: the only shared latent.
    :param num_samples: draws of the parents, for latents that have any.
    :param batch_size: rows that go through the encoders at a time.
    :raises ValueError: for unknown names, or several shared latents and no choice among them.
    """
    positive("num_samples", num_samples)
    with evaluation(model, guide):
        batch = prepared(model, guide, data, obs_mask)
        names = known_names("given", given, batch.names)
        parts = [_sites(block, block.masks(names), latents, num_samples) for block in split(batch, batch_size)]
        joined = {
            site: _on(batch.device, in_rows([p[site] for p in parts]) if fn.batch_shape else fn)  # no rows: global
            for site, fn in parts[0].items()
        }
    return joined if latents == "all" else next(iter(joined.values()))


def _sites(batch: Batch, masks: ObsMask, latents: str | None, draws: int) -> dict[str, Any]:
    """The distributions of the sites asked for."""
    experts = encode(batch, masks)
    trace = run_guide(batch, masks, None, experts)
    first, of_data_set = local_latents(trace), global_latents(trace)
    private = getattr(batch.model, "private", {})
    shared = [s for s in first if s not in private and "private_to" not in first[s]["infer"]]
    known = [*of_data_set, *first]
    wanted = known if latents == "all" else [_chosen(latents, known, shared)]
    fns: dict[str, Any] = {}
    if any(site in of_data_set for site in wanted):
        fns = _globals(batch, masks, of_data_set, draws, experts)
    fns = {site: fns[site] if site in fns else first[site]["fn"] for site in wanted}
    wanted = [site for site in wanted if site in first]
    if len(known) == 1:
        return fns
    again = local_latents(run_guide(batch, masks, None, experts))
    dependent = [s for s in wanted if _moved(first[s], again[s])]
    if dependent:
        many = local_latents(run_guide(batch, masks, draws, experts))
        fns.update({s: _over_draws(many[s]["fn"], draws, batch, s) for s in dependent})
    return fns


def _globals(
    batch: Batch, masks: ObsMask, first: dict[str, Any], draws: int, experts: Any
) -> dict[str, TorchDistribution]:
    """Global latents: their own distributions, or draws where these are made of others'."""
    again = global_latents(run_guide(batch, masks, None, experts))
    fns = {site: first[site]["fn"] for site in first}
    moving = [site for site in first if _moved(first[site], again[site])]
    if moving:
        many = reported(run_guide(batch, masks, draws, experts), batch, draws)
        fns.update({s: Empirical(many[s].draws, many[s].draws.new_zeros(draws)) for s in moving})
    return fns


def _chosen(name: str | None, known: list[str], shared: list[str]) -> str:
    if name is None and len(shared) == 1:
        return shared[0]
    if name is None:
        raise ValueError(
            f"latents: the guide has {len(shared)} shared latents, {shared}. Fix: latents='all', or one of {known}."
        )
    if name not in known:
        raise ValueError(f"latents: {name!r} is no latent of the guide; it has {known}, or 'all'.")
    return name


def _moved(first: dict[str, Any], again: dict[str, Any]) -> bool:
    """Whether a site's distribution differs between two runs: it then depends on what was drawn before it."""
    value: Tensor = first["value"]
    if repr(first["fn"].support) != repr(again["fn"].support):  # bounds that depend on other latents
        return True
    return not bool((first["fn"].log_prob(value) == again["fn"].log_prob(value)).all())


def _over_draws(fn: TorchDistribution, draws: int, batch: Batch, site: str) -> Mixture:
    """Distributions of shape ``(N, 1, ..., B)`` as a mixture over N."""
    if batch.nesting > 1:
        raise NotImplementedError(
            f"latent {site!r} depends on other latents, in a story with plates of its own: its marginal is not "
            "available. Fix: predict(..., target=(), return_latents=True) for draws."
        )
    flat = fn.expand((draws, 1, batch.size))
    components = map_params(flat, lambda p, constraint, k: _rows(p, (draws, 1, batch.size), k))
    return Mixture(components, components.sample().new_full((draws, 1), -math.log(draws)))


def _rows(p: Tensor, shape: tuple[int, int, int], event_dim: int) -> Tensor:  # shape: (*lead, N, B, *event)
    """A parameter ``(*lead, N, 1, B, *event)`` without the middle dimension; a mixture's components lead."""
    lead = p.shape[: max(p.dim() - event_dim - len(shape), 0)]
    return p.expand(lead + shape + p.shape[p.dim() - event_dim :]).select(len(lead) + 1, 0)


def _on(device: torch.device, fn: Any) -> Any:
    """The distribution on the input's device."""
    elsewhere: list[Tensor] = []

    def move(p: Tensor, constraint: Any, k: int) -> Tensor:
        elsewhere.extend([p] if p.device != device else [])
        return p.to(device)

    if device.type == "cpu" and not torch.cuda.is_available():
        return fn
    if isinstance(fn, Empirical):
        draws = fn.enumerate_support().to(device)
        return Empirical(draws, draws.new_zeros(len(draws)))
    moved = map_params(fn, move)
    return moved if elsewhere else fn
