"""Running model and guide over a table: log-densities of every site, per particle, draw and sample.

Layer: objectives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from pyro_mmvae.guides.component import components
from pyro_mmvae.handlers import ScoreMessenger, Target, WithinPlate, replay
from pyro_mmvae.handlers.registration import unregistered
from pyro_mmvae.masks import Data, ObsMask

__all__ = ["Programs", "Sites", "canonical", "plain_log_prob", "sites_of"]


@dataclass
class Sites:
    """
    What one run of a program left behind, densities of shape ``(K or 1, U or 1, B)``.

    :ivar fns: latent site -> its distribution, batch shape in the program's own layout.
    :ivar values: latent site -> its draw, in the program's own layout.
    :ivar log_prob: latent site (or factor) -> log-density.
    :ivar log_lik: modality -> scored log-likelihood, times the story's own scale.
    :ivar private_to: private latent site -> its modality.
    :ivar counts: private latent sites whose densities count only where they are "inferred", or where their modality is
        "observed", whatever they are drawn from elsewhere.
    :ivar outside: log-density of the sites outside the plate ``data``, single.
    :ivar global_fns: latent site outside the plate ``data`` -> its distribution.
    :ivar auxiliary: latent sites that another site's value is made of, as those of Pyro's AutoGuides.
    :ivar scale: of the plate ``data``.
    """

    fns: dict[str, Any] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)
    log_prob: dict[str, Tensor] = field(default_factory=dict)
    log_lik: dict[str, Tensor] = field(default_factory=dict)
    factors: dict[str, Tensor] = field(default_factory=dict)
    outside: dict[str, Tensor] = field(default_factory=dict)
    global_fns: dict[str, Any] = field(default_factory=dict)
    auxiliary: set[str] = field(default_factory=set)
    private_to: dict[str, str] = field(default_factory=dict)
    counts: dict[str, str] = field(default_factory=dict)
    scale: float = 1.0


def plain_log_prob(site: Mapping[str, Any]) -> Tensor:
    """Log-density of a site's value, masked, without scales."""
    score = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    mask = site["mask"]
    if mask is None or mask is True:
        return score
    return torch.where(torch.as_tensor(mask, device=score.device), score, 0.0)


def canonical(score: Tensor, nesting: int) -> Tensor:
    """Log-densities as ``(K or 1, U or 1, B)``: the story's own plates are summed out."""
    while score.dim() < nesting + 2:
        score = score.unsqueeze(0)
    return score if nesting == 1 else score.sum(tuple(range(2, score.dim() - 1)))


def sites_of(trace: Trace, nesting: int) -> Sites:
    """
    Read a trace: densities by kind of site.

    :raises NotImplementedError: for enumerated sites.
    """
    out = Sites()
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or isinstance(site["fn"], _Subsample) or site["infer"].get("_deterministic"):
            continue
        frame = next((f for f in site["cond_indep_stack"] if f.name == "data"), None)
        if site["infer"].get("is_auxiliary") and not site["is_observed"]:
            out.auxiliary.add(name)
        if frame is None:
            out.outside[name] = (plain_log_prob(site) * site["scale"]).sum()
            if not site["is_observed"]:
                out.global_fns[name], out.values[name] = site["fn"], site["value"]
            continue
        out.scale = _plate_scale(frame)
        if site["infer"].get("enumerate") is not None or site["infer"].get("_enumerate_dim") is not None:
            raise NotImplementedError(
                f"latent {name!r} is enumerated: this objective does not sum it out. Fix: train with "
                "pyro.infer.TraceEnum_ELBO(max_plate_nesting=1)."
            )
        score = canonical(plain_log_prob(site), nesting)
        own = site["scale"] / out.scale if not isinstance(site["scale"], float) or site["scale"] != out.scale else 1.0
        if isinstance(own, Tensor) or own != 1.0:
            score = score * (canonical(own, nesting) if isinstance(own, Tensor) else own)
        if "modality" in site["infer"]:
            out.log_lik[site["infer"]["modality"]] = score
        elif site["is_observed"]:
            out.factors[name] = score
        else:
            out.fns[name], out.values[name], out.log_prob[name] = site["fn"], site["value"], score
            if "private_to" in site["infer"]:
                out.private_to[name] = site["infer"]["private_to"]
            if "counts" in site["infer"]:
                out.counts[name] = site["infer"]["counts"]
    return out


def _plate_scale(frame: Any) -> float:
    full = frame.full_size if frame.full_size is not None else frame.size
    return float(full) / float(frame.size)


@dataclass
class Programs:
    """
    A model and a guide on one prepared batch.

    :ivar names: modalities, in the order of the table's M.
    :ivar num_particles: K.
    :ivar nesting: plates of the story, ``data`` included.
    :ivar possible: per draw and modality, whether it can be scored at all; given, all rows of such draws run and
        nothing depends on the values of masks.
    :ivar raw_mask: the masks as they came, for models that are not made by ``observe``.
    :ivar first: what the draws of a step share -> the guide's sites in the first of its runs: global sites are drawn
        once, however many runs a step takes.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    data: Data
    obs_mask: ObsMask
    names: tuple[str, ...]
    num_particles: int
    nesting: int
    raw_mask: Any = None
    possible: tuple[tuple[bool, ...], ...] | None = None
    first: dict[Any, Sites] = field(default_factory=dict)

    @property
    def vectorized(self) -> bool:
        """Whether the guide answers masks with leading dimensions."""
        return bool(getattr(self.guide, "vectorized", False))

    def masks(
        self,
        rows: Tensor,  # shape: (U, B, M), bool
        private: Tensor | None = None,  # shape: (U, B, M), bool
        *,
        largest: int | None = None,
        owners: tuple[str, ...] | None = None,
        needed: bool = True,
    ) -> ObsMask:
        """
        ``rows`` as masks in inside form, ``(B,)`` if U is 1, else ``(U, 1, ..., 1, B)``.

        :param needed: whether rows without anything count.
        """
        own = self._spread(rows)
        out = ObsMask.of_rows({m: own[i] for i, m in enumerate(self.names)}, self.obs_mask.event_dims)
        for m, mask in self.obs_mask.items():
            k = self.obs_mask.event_dims[m]
            if k and mask.shape[1:] != (1,) * k:
                out[m] = out[m] & mask
        out.largest, out.owners, out.needed = largest, owners, needed
        if private is not None:
            out.private = self.masks(private)
        return out

    def _spread(self, rows: Tensor) -> list[Tensor]:
        device = next(iter(self.obs_mask.values())).device
        rows = rows.to(device, non_blocking=True)
        lead = () if len(rows) == 1 else (len(rows),) + (1,) * (self.nesting - 1)
        return [row.reshape((*lead, rows.shape[1])) for row in rows.unbind(-1)]

    @contextmanager
    def _plates(self, draws: int) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(unregistered())
            if self.num_particles > 1:
                stack.enter_context(WithinPlate("particles", self.num_particles, -self.nesting - 2))
            if draws > 1:
                stack.enter_context(WithinPlate("terms", draws, -self.nesting - 1))
            yield

    def run_guide(
        self,
        masks: ObsMask,
        draws: int,
        *,
        values: Mapping[str, Tensor] | None = None,
        experts: Any = None,
        component: bool = True,
        program: Callable[..., Any] | None = None,
    ) -> Trace:
        """
        One run of the guide under the plates, on given draws if ``values`` are.

        :param component: ask mixtures for the component that belongs to each row.
        :param program: another program with the guide's signature, in its place.
        """
        guide = self.guide if program is None else program
        extra = {} if experts is None else {"experts": experts}
        with ExitStack() as stack:
            tracer = stack.enter_context(poutine.trace())
            stack.enter_context(self._plates(draws))
            if component:
                stack.enter_context(components())
            if values is not None:
                stack.enter_context(replay(values))
            if getattr(guide, "vectorized", False):
                guide(self.data, masks, **extra)
            else:
                guide(dict(self.data), masks.door_form())
        return tracer.trace

    def run_model(self, values: Mapping[str, Tensor], draws: int, target: Mapping[str, Target]) -> Trace:
        """One run of the model on the guide's draws, scoring the target."""
        with poutine.trace() as tracer, self._plates(draws), ScoreMessenger(target), replay(values):
            self.model(self.data, self.obs_mask if self.raw_mask is None else self.raw_mask)
        return tracer.trace

    def targets(self, scored: Tensor) -> dict[str, Target]:
        """Targets by modality from bool ``(U, B, M)`` on the host, with the indices of scored rows."""
        out = {}
        for i, (m, mask) in enumerate(zip(self.names, self._spread(scored), strict=True)):
            if self.possible is None:
                index = scored[:, :, i].reshape(-1).nonzero().squeeze(-1)
                out[m] = Target(mask, index.to(mask.device, non_blocking=True))
            else:
                out[m] = Target(mask, self._whole_draws(self.possible, i, mask.device), exact=False)
        return out

    def _whole_draws(self, possible: Sequence[Sequence[bool]], modality: int, device: torch.device) -> Tensor | None:
        """All rows of the draws that may score a modality; None for all draws."""
        draws = [u for u, row in enumerate(possible) if row[modality]]
        if len(draws) == len(possible):
            return None
        batch = torch.arange(self.data.size, device=device)
        return (torch.tensor(draws, device=device).unsqueeze(-1) * self.data.size + batch).reshape(-1)
