"""When training breaks: which site of which modality is no longer finite.

Layer: training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_mmvae.distributions import map_params
from pyro_mmvae.masks import ObsMask
from pyro_mmvae.objectives import Objective
from pyro_mmvae.objectives.passes import Programs, Sites, sites_of
from pyro_mmvae.objectives.prepare import prepare
from pyro_mmvae.training.history import State
from pyro_mmvae.training.rng import preserved, set_states

__all__ = ["Cause", "Moment", "TrainingDiverged", "find_cause", "gradient_cause"]


@dataclass(frozen=True)
class Cause:
    """
    What is not finite.

    :ivar text: one clause that says it.
    :ivar site: name of the Pyro site, if one is to blame.
    :ivar modality: the modality it belongs to, if any.
    :ivar parameter: name of the parameter, if one is to blame.
    """

    text: str
    site: str | None = None
    modality: str | None = None
    parameter: str | None = None


class TrainingDiverged(RuntimeError):
    """
    The loss or a gradient is NaN or infinite; the parameters are those after the last good step.

    :ivar step: the step that failed, from 1.
    :ivar epoch: the epoch it belongs to, from 1.
    :ivar cause: what is not finite, if it was found.
    """

    def __init__(self, what: str, step: int, epoch: int, cause: Cause | None) -> None:
        self.step, self.epoch, self.cause = step, epoch, cause
        why = "no single site is to blame: the sum overflowed" if cause is None else cause.text
        super().__init__(
            f"step {step} (epoch {epoch}): {what}; {why}. The parameters are those after the last good step. Try one "
            "of the following fixes:\n1. a lower lr\n2. clip_norm=10.0\n3. standardized data, or a likelihood whose "
            "scale is bounded from below"
        )

    @property
    def site(self) -> str | None:
        """The Pyro site to blame."""
        return None if self.cause is None else self.cause.site

    @property
    def modality(self) -> str | None:
        """The modality to blame."""
        return None if self.cause is None else self.cause.modality

    @property
    def parameter(self) -> str | None:
        """The parameter to blame."""
        return None if self.cause is None else self.cause.parameter


@dataclass(frozen=True)
class Moment:
    """
    A batch about to be evaluated, with all that evaluating it again needs.

    :ivar step: number of the training step, from 1.
    :ivar start: the global random states before the batch.
    """

    run: State
    step: int
    start: Mapping[str, Tensor]
    data: Mapping[str, Tensor]
    obs_mask: Mapping[str, Tensor]
    device: torch.device

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Errors inside that come of NaN become :class:`TrainingDiverged`: validation meets it before the loss does."""
        try:
            yield
        except (ValueError, torch.linalg.LinAlgError) as error:
            cause = self._cause()
            if cause is None:
                raise
            raise self.diverged("the loss cannot be computed", cause) from error

    def diverged(self, what: str, cause: Cause | None = None) -> TrainingDiverged:
        """The error to raise; the cause is looked for, if it is not given."""
        found = self._cause() if cause is None else cause
        return TrainingDiverged(what, self.step, self.run.epoch, found)

    def _cause(self) -> Cause | None:
        with preserved(self.device):
            set_states(self.start, self.device)
            return find_cause(self.run.vae, self.data, self.obs_mask)


def find_cause(vae: nn.Module, data: Mapping[str, Tensor], obs_mask: Mapping[str, Tensor]) -> Cause | None:
    """
    Run the programs on a batch and name the first thing that is not finite: a parameter, an encoder, a latent, a
    likelihood. None if everything is finite, or the programs cannot be run this way.

    Call it with the random state that the failing step started from.
    """
    for name, p in vae.named_parameters():
        if not bool(p.detach().isfinite().all()):
            return Cause(f"parameter {name!r} itself is not finite", parameter=name)
    try:
        with torch.no_grad(), pyro.validation_enabled(False):
            return next(_causes(vae, data, obs_mask), None)
    except (ValueError, RuntimeError, NotImplementedError):  # the caller has an error of its own to raise
        return None


def gradient_cause(vae: nn.Module) -> Cause | None:
    """The parameters whose gradient is not finite."""
    bad = [n for n, p in vae.named_parameters() if p.grad is not None and not bool(p.grad.isfinite().all())]
    if not bad:
        return None
    others = f" and {len(bad) - 1} others" if len(bad) > 1 else ""
    return Cause(f"the gradient of parameter {bad[0]!r}{others} is not finite", parameter=bad[0])


def _causes(vae: Any, data: Mapping[str, Tensor], obs_mask: Mapping[str, Tensor]) -> Iterator[Cause]:
    guide, objective = vae.guide, vae.objective
    programs = prepare(vae.model, guide, data, obs_mask, None, getattr(objective, "num_particles", 1))
    experts = guide.encode(programs.data, programs.obs_mask) if hasattr(guide, "encode") else None
    if isinstance(experts, Mapping):
        yield from _bad_experts(experts, programs.obs_mask)
    source, private, target = _sets(objective, programs)
    draws = range(len(source))
    for part in [slice(None)] if programs.vectorized else [slice(u, u + 1) for u in draws]:
        masks = programs.masks(source[part], private[part])
        count = len(source[part])
        posterior = sites_of(programs.run_guide(masks, count, experts=experts), programs.nesting)
        yield from _bad_posterior(posterior)
        trace = programs.run_model(posterior.values, count, programs.targets(target[part]))
        yield from _bad_model(sites_of(trace, programs.nesting))


def _sets(objective: object, programs: Programs) -> tuple[Tensor, Tensor, Tensor]:  # each (U, B, M), on the host
    """What the guide sees, what private latents listen to, and what is scored."""
    if isinstance(objective, Objective):
        table = objective.table(programs)
        return table.source, table.private, table.scored
    observed = torch.stack([programs.obs_mask.rows[m].cpu() for m in programs.names], -1).unsqueeze(0)
    return observed, observed, observed


def _bad_experts(experts: Mapping[str, Any], obs_mask: ObsMask) -> Iterator[Cause]:
    for site, own in experts.items():
        dists = getattr(own, "dists", ())
        names = getattr(own, "names", ()) if dists else ()  # rules of features alone have no experts to look at
        for m, expert in zip(names, dists, strict=True):
            rows = obs_mask.rows[m]
            if not _finite_params(expert, rows):
                text = f"modality {m!r}: its encoder's expert of latent {site!r} has parameters that are not finite"
                yield Cause(text, site, m)


def _finite_params(fn: Any, rows: Tensor) -> bool:
    finite = []

    def look(p: Tensor, constraint: Any, event_dim: int) -> Tensor:
        batched = p.dim() > event_dim and p.shape[0] == len(rows)
        finite.append(bool((p[rows] if batched else p).isfinite().all()))
        return p

    try:
        map_params(fn, look)
    except NotImplementedError:
        return True  # its draws and densities are looked at later
    return all(finite)


def _bad_posterior(sites: Sites) -> Iterator[Cause]:
    for site, z in sites.values.items():
        private = sites.private_to.get(site)
        if not bool(z.isfinite().all()):
            yield Cause(f"draws of latent {site!r} from the guide are not finite", site, private)
        if site in sites.log_prob and not bool(sites.log_prob[site].isfinite().all()):
            yield Cause(_density("guide's", site, sites.log_prob[site]), site, private)


def _bad_model(sites: Sites) -> Iterator[Cause]:
    for site, score in {**sites.log_prob, **sites.factors}.items():
        if not bool(score.isfinite().all()):
            yield Cause(_density("model's", site, score), site, sites.private_to.get(site))
    for m, score in sites.log_lik.items():
        if not bool(score.isfinite().all()):
            yield Cause(f"modality {m!r}: {_density('likelihood', m, score)}", m, m)
    for site, score in sites.outside.items():
        if not bool(score.isfinite().all()):
            yield Cause(f"the log-density of global site {site!r} is {score.item()}", site)


def _density(whose: str, site: str, score: Tensor) -> str:  # shape of score: (K or 1, U or 1, B)
    bad = ~score.isfinite()
    rows = bad.flatten(0, -2).any(0)
    value = score[bad][0].item()
    return f"the {whose} log-density at site {site!r} is {value} in {int(rows.sum())} of {len(rows)} rows"
