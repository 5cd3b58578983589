"""What the laws look at: a few rows of the data, and runs of both programs on them under several masks.

Layer: checks, private.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyro
import torch
from pyro.poutine import Trace
from torch import Tensor, nn

from pyro_mmvae.checks.rows import chosen_rows, filled, partly_hidden, seen_rows, subsets
from pyro_mmvae.checks.runs import (
    Program,
    ProgramError,
    Run,
    Tensors,
    copies,
    difference,
    latents,
    modality_of,
    row_frame,
    sample_sites,
    scores,
    trace,
)
from pyro_mmvae.checks.state import Ambient, networks_of, seeded
from pyro_mmvae.distributions import fill_value
from pyro_mmvae.handlers.registration import unregistered
from pyro_mmvae.masks import ObsMask
from pyro_mmvae.stories import ObservedModel

__all__ = ["Context", "Tried"]

Scores = dict[tuple[str, str], Tensor]


@dataclass
class Tried:
    """
    Both programs under one set of observed modalities.

    :ivar names: the set.
    :ivar run: None if a program failed.
    :ivar scores: (program, site) -> log-densities per row.
    :ivar gradients: parameter -> gradient of log p - log q, or of the objective; None: it is not reached.
    """

    names: tuple[str, ...]
    run: Run | None = None
    error: ProgramError | None = None
    scores: Scores = field(default_factory=dict)
    total: Tensor | None = None
    gradients: dict[str, Tensor | None] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The set in words."""
        return f"{{{', '.join(self.names)}}}" if self.names else "nothing"


class Context:
    """
    The pair, and a small batch on which laws are checked.

    :param raw: the data, (B, *event) each.
    :param masks: the masks at the door, or None.
    :ivar names: the modalities.
    :ivar rows: indices of the rows that are looked at.
    :ivar data: those rows, hidden cells filled.
    :ivar full: their masks.
    :ivar masks: the same with some modality hidden in most rows.
    :ivar problem: what keeps the programs from running at all.
    :ivar mode: how networks run: "training" with dropout off, or "evaluation" if draws remain that are no sites.
    :ivar noisy: the program and site at which two runs differ in evaluation mode as well, or None.
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        objective: Any,
        raw: Mapping[str, Any],
        masks: Mapping[str, Any],
        seed: int,
    ) -> None:
        self.model, self.guide, self.objective, self.seed = model, guide, objective, seed
        self.ambient = Ambient()
        self.raw = {name: x for name, x in raw.items() if isinstance(x, Tensor)}
        self.given_masks = {name: x for name, x in masks.items() if isinstance(x, Tensor)}
        self.networks = {
            **{f"model.{k}" if k else "model": m for k, m in networks_of(model).items()},
            **{f"guide.{k}" if k else "guide": m for k, m in networks_of(guide).items()},
        }
        if isinstance(objective, nn.Module):
            self.networks["objective"] = objective
        self.data: dict[str, Tensor] = dict(self.raw)
        self.full: dict[str, Tensor] = {}
        self.masks: dict[str, Tensor] = {}
        self.names: tuple[str, ...] = ()
        self.rows: list[int] = []
        self.problem: ProgramError | None = None
        self.mode = "training"
        self.noisy: tuple[str, str] | None = None
        self._quiet(training=True)
        self.model_alone, self.guide_alone = Trace(), Trace()
        try:
            self._prepare()
            self.model_alone, self.guide_alone = self._alone()
            self._settle()
        except ProgramError as error:
            self.problem = error

    # what there is to look at

    @property
    def size(self) -> int:
        """The number of rows that are looked at."""
        return len(self.rows)

    def _prepare(self) -> None:
        found: Trace | None = None
        if isinstance(self.model, ObservedModel):
            self.names = self.model.modalities
        else:
            seen = {k: torch.ones(len(x), dtype=torch.bool, device=x.device) for k, x in self.raw.items() if x.dim()}
            found = self.seeded_trace("model", self.model, self.raw, {**seen, **self.given_masks}, improper=True)
            named = (modality_of(n, s, (*self.raw, *self.given_masks)) for n, s in sample_sites(found).items())
            self.names = tuple(dict.fromkeys([*(m for m in named if m is not None), *self.given_masks]))
        total = max((len(x) for m, x in self.raw.items() if m in self.names), default=0)
        total = max([total, *(len(x) for m, x in self.given_masks.items() if m in self.names)])
        if total == 0:
            error = ValueError("data holds no rows of a modality of the model")
            raise ProgramError("model", None, error)
        masks = {m: self.given_masks.get(m, self._seen_at_all(m, total)) for m in self.names}
        taken = {size for x in self.raw.values() for size in x.shape[1:]} | self._latent_sizes(found)
        self._cut(masks, chosen_rows(masks, self.names, total, taken), total, found)

    def _seen_at_all(self, name: str, total: int) -> Tensor:
        device = next(iter(self.raw.values())).device if self.raw else torch.device("cpu")
        return torch.full((total,), name in self.raw, dtype=torch.bool, device=device)

    def _latent_sizes(self, found: Trace | None) -> set[int]:
        if found is None and isinstance(self.model, ObservedModel) and not self.model.story.required:
            try:
                sites = self.model.door.outline().latents
            except Exception as error:
                raise ProgramError("model", None, error) from error
            return {size for site in sites.values() for size in site.event_shape}
        return set() if found is None else {k for s in latents(found).values() for k in s["fn"].event_shape}

    def _cut(self, masks: Tensors, rows: Tensor, total: int, found: Trace | None) -> None:
        """Take the rows; all of them if a native model runs with no other number."""

        def take(x: Tensor) -> Tensor:
            return x[rows.to(x.device)].clone() if x.dim() and len(x) == total else x.clone()

        self.rows = rows.tolist()
        self.data = {name: take(x) for name, x in self.raw.items()}
        others = {k: x for k, x in self.given_masks.items() if k not in masks}
        self.full = {m: take(x) for m, x in {**others, **masks}.items()}
        if isinstance(self.model, ObservedModel):
            self._fill_at_door(self.model)
        else:
            self._fill(found)
            try:
                self.seeded_trace("model", self.model, self.data, self.full, improper=True)
            except ProgramError:
                if len(rows) < total:
                    self._cut(masks, torch.arange(total, device="cpu"), total, found)
        self.masks = partly_hidden(self.full, self.names)

    def _fill_at_door(self, model: ObservedModel) -> None:
        try:
            data, masks = model.prepare(self.data, self.full, len(self.rows))
        except Exception as error:
            raise ProgramError("model", None, error) from error
        self.data, self.full = dict(data), masks.door_form() if isinstance(masks, ObsMask) else dict(masks)

    def _fill(self, found: Trace | None) -> None:
        sites = {} if found is None else sample_sites(found)
        for name, site in sites.items():
            m = modality_of(name, site, self.names)
            if m is not None and m in self.data and self.data[m].shape[:1] == self.full[m].shape[:1]:
                constant = fill_value(site["fn"].support, site["fn"].event_shape)
                self.data[m] = filled(self.data[m], self.full[m], constant)

    def _alone(self) -> tuple[Trace, Trace]:
        model = self.seeded_trace("model", self.model, self.data, self.full, improper=True)
        return model, self.seeded_trace("guide", self.guide, self.data, self.full)

    def _settle(self) -> None:
        """Draws of networks that are no sites, as dropout's, are left out where possible."""
        try:
            if self._unsettled() is None:
                return
            self.mode = "evaluation"
            self._quiet(training=False)
            found = self._unsettled()
        except ProgramError:
            return  # the laws will say so
        self.noisy = None if found is None else found[:2]

    def _unsettled(self) -> tuple[str, str, int | None] | None:
        """Where two runs on the same draws differ."""
        run = self.run()
        return difference(*[self.scores(self.run(values=run.values, seed=self.seed + k)) for k in (0, 1)])

    def _quiet(self, *, training: bool) -> None:
        for module in self.networks.values():
            for part in module.modules():
                part.training = training and not isinstance(part, nn.modules.dropout._DropoutNd)

    # running

    def seeded_trace(self, name: str, program: Program, *args: Any, seed: int | None = None, **options: Any) -> Trace:
        """One run of a program from a random state of its own."""
        seeded(self.seed if seed is None else seed)
        return trace(name, program, *args, **options)

    def run(
        self,
        data: Tensors | None = None,
        masks: Tensors | None = None,
        *,
        values: Tensors | None = None,
        particles: tuple[int, int] | None = None,
        seed: int | None = None,
        draw: bool = False,
    ) -> Run:
        """
        The guide, and the model on its draws, or both on the values given.

        :param draw: draw hidden entries of modalities that ``observe`` was told to draw; else they hold a constant, so
            that two runs can be compared.
        """
        x, mask = self.data if data is None else data, self.masks if masks is None else masks
        with nullcontext() if draw else _undrawn(self.model):
            guide = self.seeded_trace("guide", self.guide, x, mask, values, particles=particles, seed=seed)
            drawn = {name: site["value"] for name, site in latents(guide).items()}
            drawn = {**({} if values is None else values), **drawn}
            model = trace("model", self.model, x, mask, drawn, particles=particles)
        values = {**{name: site["value"] for name, site in latents(model).items()}, **drawn}
        return Run(guide, model, {name: value.detach() for name, value in values.items()})

    def scores(self, run: Run, *, lead: int | None = None, size: int | None = None) -> Scores:
        """(program, site) -> log-densities per row, of which there may be another number."""
        out: Scores = {}
        for program, found in (("guide", run.guide), ("model", run.model)):
            frame = row_frame(found, self.size if size is None else size)
            try:
                own = scores(found, frame, lead=lead)
            except ProgramError as error:
                raise ProgramError(program, error.site, error.error) from error
            out.update({(program, site): score for site, score in own.items()})
        return out

    def taken(self, values: Tensors, found: Trace, rows: Tensor) -> dict[str, Tensor]:
        """Draws of some rows; what lies outside the plate of the rows stays."""
        frame, out = row_frame(found, self.size), dict(values)
        for name, site in sample_sites(found).items():
            if name in out and frame is not None and any(f.name == frame.name for f in site["cond_indep_stack"]):
                dim = frame.dim - site["fn"].event_dim
                value = out[name]
                if value.dim() >= -dim and value.shape[dim] == self.size:
                    out[name] = value.index_select(dim, rows.to(value.device))
        return out

    @cached_property
    def base(self) -> tuple[Run, Scores]:
        """Both programs on the partly hidden rows."""
        run = self.run()
        return run, self.scores(run)

    def row(self, position: int | None) -> int | None:
        """The row as the user counts."""
        return None if position is None else self.rows[position]

    def modality_at(self, program: str, site: str) -> str | None:
        """The modality that a site of the model is."""
        found = self.model_alone if program == "model" else self.guide_alone
        sites = sample_sites(found)
        return modality_of(site, sites[site], self.names) if site in sites else None

    # parameters

    @cached_property
    def parameters(self) -> dict[str, Tensor]:
        """Everything that can be trained: parameters of the programs given, and what they take from Pyro's store."""
        out: dict[str, Tensor] = {}
        for name in ("model", "guide", "objective"):
            module = {"model": self.model, "guide": self.guide, "objective": self.objective}[name]
            for root, network in (networks_of(module) if name != "objective" else {"": module}).items():
                if isinstance(network, nn.Module) and (root == "" or isinstance(module, nn.Module)):
                    out.update({f"{name}.{key}": p for key, p in network.named_parameters() if p.requires_grad})
        nodes = {**self.model_alone.nodes, **self.guide_alone.nodes}
        taken = {name for name, site in nodes.items() if site["type"] == "param"}
        store = pyro.get_param_store().named_parameters()
        out.update({f"param store {name}": p for name, p in store if name in taken and p.requires_grad})
        unique = {id(p): (name, p) for name, p in reversed(out.items())}
        return dict(reversed(unique.values()))

    @cached_property
    def tried(self) -> list[Tried]:
        """Both programs under every set of modalities, with gradients; everything first."""
        return [self._try(names) for names in subsets(self.names)]

    def mask_of(self, names: tuple[str, ...]) -> dict[str, Tensor]:
        """What of a set of modalities is observed."""
        hidden = set(self.names) - set(names)
        return {m: torch.zeros_like(x) if m in hidden else x for m, x in self.full.items()}

    def _try(self, names: tuple[str, ...]) -> Tried:
        out = Tried(names)
        mask = self.mask_of(names)
        try:
            out.run = self.run(masks=mask, draw=True)
            out.scores = self.scores(out.run)
        except ProgramError as error:
            out.error = error
            return out
        out.total = self.total(out.scores)
        losses = [out.total]
        if self.objective is not None:
            try:
                losses.append(self.loss(mask))
            except ProgramError as error:
                out.error = error
        for loss in losses:
            try:
                found = self.gradients(loss)
            except ProgramError as error:
                out.error = error
                continue
            for name, g in found.items():
                before = out.gradients.get(name)
                out.gradients[name] = g if before is None else before if g is None else before.abs() + g.abs()
        return out

    def loss(self, mask: Tensors) -> Tensor:
        """The objective's loss under a mask."""
        seeded(self.seed)
        try:
            with unregistered():
                data, masks = copies(self.data), copies(mask)
                loss: Tensor = self.objective.differentiable_loss(self.model, self.guide, data, masks)
                return loss
        except Exception as error:
            raise ProgramError("objective", None, error) from error

    def total(self, found: Scores) -> Tensor:  # shape: ()
        """log p - log q, summed."""
        parts = [score.sum() * (1 if program == "model" else -1) for (program, _), score in found.items()]
        return sum(parts, torch.zeros((), device="cpu").to(parts[0]) if parts else torch.zeros(()))

    def gradients(self, loss: Tensor) -> dict[str, Tensor | None]:
        """The gradient of every parameter."""
        if not loss.requires_grad or not self.parameters:
            return dict.fromkeys(self.parameters)
        try:
            found = torch.autograd.grad(loss, list(self.parameters.values()), allow_unused=True)
        except RuntimeError as error:
            raise ProgramError("model", None, error) from error
        return dict(zip(self.parameters, found, strict=True))

    def seen_anywhere(self, modality: str) -> bool:
        """Whether any of the rows observes a modality."""
        return bool(seen_rows(self.full[modality]).any())


@contextmanager
def _undrawn(model: Program) -> Iterator[None]:
    """Context manager: what ``observe(draw=)`` names is a constant where it is hidden."""
    if not isinstance(model, ObservedModel) or not model.draw:
        yield
        return
    kept = model.draw
    model.draw = ()
    try:
        yield
    finally:
        model.draw = kept
