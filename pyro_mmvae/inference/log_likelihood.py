"""Log-likelihoods by importance sampling: of what is observed, of any subset, of one set given another.

Layer: inference.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, overload

import pyro
import torch
from torch import Tensor

from pyro_mmvae.inference._anatomy import anatomy
from pyro_mmvae.inference._batch import Batch, Masks, Values, evaluation, known_names, positive, prepared, split
from pyro_mmvae.inference._memory import CACHE_BYTES, keep_freed, measured
from pyro_mmvae.inference._run import encode, log_joint, log_proposal, run_guide
from pyro_mmvae.inference._weights import Weights
from pyro_mmvae.masks import ObsMask

__all__ = ["LogLikelihood", "log_likelihood"]


@dataclass(frozen=True)
class LogLikelihood:
    """
    An estimate per sample, and how far it can be trusted; all shapes ``(B,)``.

    :ivar value: log p in nats.
    :ivar standard_error: of the value, by the delta method; right where the weights have a variance.
    :ivar ess: effective number of particles; of a conditional, the smaller of its two.
    :ivar pareto_k: shape of the weights' tail, to be trusted below 0.7; of a conditional, the larger of its two; NaN
        where the weights are constant.
    """

    value: Tensor
    standard_error: Tensor
    ess: Tensor
    pareto_k: Tensor


@overload
def log_likelihood(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Values = ...,
    obs_mask: Masks = ...,
    *,
    given: Collection[str] | None = ...,
    target: Collection[str] | None = ...,
    num_particles: int = ...,
    diagnostics: Literal[False] = ...,
    memory_gb: float = ...,
    batch_size: int = ...,
) -> Tensor: ...


@overload
def log_likelihood(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Values = ...,
    obs_mask: Masks = ...,
    *,
    given: Collection[str] | None = ...,
    target: Collection[str] | None = ...,
    num_particles: int = ...,
    diagnostics: Literal[True],
    memory_gb: float = ...,
    batch_size: int = ...,
) -> LogLikelihood: ...


def log_likelihood(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Values = None,
    obs_mask: Masks = None,
    *,
    given: Collection[str] | None = None,
    target: Collection[str] | None = None,
    num_particles: int = 1000,
    diagnostics: bool = False,
    memory_gb: float = 1.0,
    batch_size: int = 512,
) -> Tensor | LogLikelihood:  # shape: (B,), nats
    r"""
    Estimate log p(x_O), or log p(x_target | x_given), per sample.

    .. math:: \log p(x_O) \approx \log \frac1K \sum_k \frac{p(x_O, z_k)}{q(z_k \mid x_O)}, \quad z_k \sim q(z \mid x_O),
        \qquad \log p(x_A \mid x_S) = \log p(x_{A \cup S}) - \log p(x_S)

    A conditional is the difference of two such estimates with draws of their own, each proposed from the guide's
    posterior given exactly what it scores: either is exact where the guide is, and their standard errors add in
    squares. (With the draws of q(z | x_S) alone the first sum would hang on the few that the target agrees with;
    with those of the sharper q(z | x_{A and S}) alone the weights of the second need not have a variance.)
    It is the model's own conditional, whatever the guide.

    The estimate is consistent, its logarithm biased downwards by about ``standard_error ** 2 / 2``. A mixture posterior
    is sampled and scored as the mixture. Where nothing is observed the value is exactly 0. Enumerated latents that the
    guide lacks are summed out; others it lacks are proposed from the story. Missing values of a modality that feeds
    another are integrated over the same way. Sites outside the plate ``data`` are drawn once per particle from the
    guide, and their densities left out: p(x_O) averaged over the guide's posterior of them.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> import pyro_mmvae as mm
        >>> def story():
        ...     z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...     pyro.sample("x", dist.Normal(z, 1.0).to_event(1))
        >>> model = mm.observe(story, ("x",))
        >>> guide = mm.guides.Product(model, {"x": mm.nn.MLPEncoder(2, 2)})
        >>> seen = {"x": torch.tensor([True, False])}
        >>> float(log_likelihood(model, guide, {"x": torch.zeros(2, 2)}, seen)[1])
        0.0

    :param data: modality -> Tensor ``(B, *event)`` with the covariates, or a dataset (which has its masks).
    :param obs_mask: modality -> bool ``(B,)`` or ``(B, *event)``, True = observed; None: everything.
    :param given: what to condition on; default: nothing, or, with a target, all other observed modalities.
    :param target: what to score; default: everything observed that is not given.
    :param num_particles: K.
    :param diagnostics: return a :class:`LogLikelihood` with standard error, effective sample size and Pareto's k.
    :param memory_gb: bound on the memory used, whatever K and B; chunks are cut by measuring a probe.
    :param batch_size: rows that go through the encoders at a time.
    :raises ValueError: for unknown names, a name both given and target, fewer than 1 particle.
    :raises NotImplementedError: if the prior of a latent is improper: there is no marginal likelihood.
    """
    positive("num_particles", num_particles)
    if not memory_gb > 0:
        raise ValueError(f"memory_gb: expected a positive number, got {memory_gb}.")
    with evaluation(model, guide):
        batch = prepared(model, guide, data, obs_mask)
        conditioned, scored = _sets(batch, given, target)
        _warn_of_pseudo_densities(batch, scored)
        ask = _Ask(num_particles, diagnostics, memory_gb * 1e9)
        parts = [_conditional(block, conditioned, scored, ask) for block in split(batch, batch_size)]
    rows = {f.name: torch.cat([getattr(p, f.name) for p in parts]).to(batch.device) for f in fields(LogLikelihood)}
    return LogLikelihood(**rows) if diagnostics else rows["value"]


@dataclass(frozen=True)
class _Ask:
    num_particles: int
    diagnostics: bool
    memory: float


def _sets(
    batch: Batch, given: Collection[str] | None, target: Collection[str] | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What to condition on, what to score."""
    known, scored = known_names("given", given, batch.names), known_names("target", target, batch.names)
    if known is None:
        known = () if scored is None else tuple(m for m in batch.names if m not in scored)
    if scored is None:
        scored = tuple(m for m in batch.names if m not in known)
    both = [m for m in scored if m in known]
    if both:
        raise ValueError(f"{both}: both given and target. Fix: leave them out of one of the two.")
    return known, scored


def _warn_of_pseudo_densities(batch: Batch, scored: Collection[str]) -> None:
    improper = [site for site in anatomy(batch).not_densities if site not in batch.names]
    if improper:
        raise NotImplementedError(
            f"latents {improper} have an improper prior: log p(x) does not exist. Fix: a proper prior, e.g. "
            "stories.NormalPrior, or compare imputations instead."
        )
    strange = [m for m in anatomy(batch).not_densities if m in scored]
    if strange:
        warnings.warn(
            f"the likelihoods of {strange} are no densities (their log_prob is a cross-entropy, as relaxed_bernoulli): "
            "the result is no log-likelihood. Fix: 'continuous_bernoulli' is a density on [0, 1].",
            stacklevel=3,
        )


def _conditional(batch: Batch, given: tuple[str, ...], scored: tuple[str, ...], ask: _Ask) -> LogLikelihood:
    """log p(scored, given) - log p(given), exactly 0 in rows where nothing is scored."""
    rows = batch.obs_mask.stacked(scored).any(-1) if scored else torch.zeros(batch.size, dtype=torch.bool)
    joint = _evidence(batch, batch.masks({*given, *scored}), rows, ask)
    if not given:
        return joint
    rows = rows & batch.obs_mask.stacked(given).any(-1)
    part = _evidence(batch, batch.masks(given), rows, ask)
    return LogLikelihood(
        joint.value - part.value,
        torch.hypot(joint.standard_error, part.standard_error),
        torch.minimum(joint.ess, part.ess),
        torch.fmax(joint.pareto_k, part.pareto_k),
    )


def _evidence(batch: Batch, masks: ObsMask, rows: Tensor, ask: _Ask) -> LogLikelihood:
    """log p of everything in ``masks`` for the chosen rows; 0, without error, for the others."""
    like = next((x for x in batch.data.values() if x.is_floating_point()), torch.zeros(()))
    home = next(iter(masks.values())).device
    start = {"value": 0.0, "standard_error": 0.0, "ess": float(ask.num_particles), "pareto_k": torch.nan}
    out = {name: torch.full((batch.size,), x, dtype=like.dtype, device=home) for name, x in start.items()}
    index = rows.to(home).nonzero().squeeze(-1)
    if index.numel() == 0:
        return LogLikelihood(**out)
    if not batch.is_story:  # a model with plates of its own takes all rows
        index = torch.arange(batch.size, device=home)
    shown = replace(batch, obs_mask=masks).take(index)
    weights = _weigh(shown, ask)
    found = {"value": weights.value, "standard_error": weights.standard_error, "ess": weights.ess}
    if ask.diagnostics:
        found["pareto_k"] = weights.pareto_k
    for name, x in found.items():
        chosen = rows.to(home)[index]
        out[name] = out[name].index_copy(0, index, torch.where(chosen, x.to(out[name]), out[name][index]))
    return LogLikelihood(**out)


def _weigh(batch: Batch, ask: _Ask) -> Weights:
    """The weights of all particles, in chunks of rows and particles that fit."""
    block, draws = _chunk(batch, ask)
    keep_freed(next(iter(batch.data.values())).device, ask.memory)
    done: list[Weights] = []
    for start in range(0, batch.size, block):
        part = batch if block >= batch.size else batch.take(slice(start, start + block))
        experts = encode(part, part.obs_mask)
        weights = Weights(ask.num_particles, tail=ask.diagnostics)
        with pyro.validation_enabled(False):  # the probe ran with it
            for first in range(0, ask.num_particles, draws):
                weights.add(_log_weights(part, experts, min(draws, ask.num_particles - first)))
        done.append(weights)
    return done[0] if len(done) == 1 else _joined(done, ask)


def _joined(parts: list[Weights], ask: _Ask) -> Weights:
    out = Weights(ask.num_particles, tail=ask.diagnostics)
    out.first = torch.cat([w.first for w in parts if w.first is not None])
    out.second = torch.cat([w.second for w in parts if w.second is not None])
    if ask.diagnostics:
        out.largest = torch.cat([w.largest for w in parts if w.largest is not None], -1)
    return out


def _log_weights(batch: Batch, experts: Any, draws: int) -> Tensor:  # shape: (k, B)
    """log p(x, z) - log q(z | x) at fresh draws."""
    values, log_q = log_proposal(batch, run_guide(batch, batch.obs_mask, draws, experts))
    feeding = anatomy(batch).feeding([m for m, rows in batch.obs_mask.rows.items() if bool(rows.any())], batch.names)
    return log_joint(batch, batch.obs_mask, values, draws, feeding=feeding) - log_q


def _chunk(batch: Batch, ask: _Ask) -> tuple[int, int]:
    """Rows and particles per chunk: a row that observes all that any row does is measured."""
    device = next(iter(batch.data.values())).device
    if not batch.is_story:
        experts = encode(batch, batch.obs_mask)
        per_draw = measured(lambda k: _log_weights(batch, experts, k), device)
        return batch.size, _fitting(ask, device, per_draw)
    fullest = {m: mask.any(0, keepdim=True) for m, mask in batch.obs_mask.items()}
    shown = replace(batch.take(slice(0, 1)), obs_mask=ObsMask(fullest, batch.obs_mask.event_dims))
    experts = encode(shown, shown.obs_mask)
    per_draw = measured(lambda k: _log_weights(shown, experts, k), device)
    most = _fitting(ask, device, per_draw)
    block = min(batch.size, most)
    return block, max(most // block, 1)


def _fitting(ask: _Ask, device: torch.device, per_draw: float) -> int:
    """How many row-draws fit."""
    bound = min(ask.memory, CACHE_BYTES) if device.type == "cpu" else ask.memory
    return max(int(bound // per_draw), 1)
