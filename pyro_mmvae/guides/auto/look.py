"""What a program's draws show: its sites, their shapes and supports, what depends on what.

Layer: guides.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine import Trace, messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor, nn

from pyro_mmvae.distributions import fill_value, stand_ins
from pyro_mmvae.guides.auto.graph import everything, parents_of
from pyro_mmvae.handlers import replay
from pyro_mmvae.handlers.registration import unregistered
from pyro_mmvae.masks import Data, ObsMask, fill, normalize
from pyro_mmvae.nn import modes_restored
from pyro_mmvae.stories import ObservedModel, data_plate

__all__ = ["Look", "Program", "Site", "first_masks", "is_native", "looking"]

Site = dict[str, Any]

_ROWS = 512  # of the user's data that a look uses
_PRIVATE = "private_to"
_STOPPED = """auto: the story stopped {where}, drawn without data. Try one of the following fixes:
1. .to_event(1) at a site of several numbers: all dimensions of a sample are event dimensions
2. covariate.unsqueeze(-1) where a covariate (rows,) meets values (rows, D)
3. exp or softplus for scales and rates, which random values of the latents must not make negative"""


class Program:
    """
    A story made by ``observe``, or a native model ``model(data, obs_mask)``: what a guide asks of either.

    :param model: the model.
    :param data: some rows; native models are run on them.
    :param obs_mask: their masks.
    """

    def __init__(self, model: Callable[..., Any], data: Mapping[str, Any], obs_mask: Mapping[str, Any] | None) -> None:
        self.model, self.data, self.obs_mask = model, dict(data), obs_mask
        self.story = model if isinstance(model, ObservedModel) else None
        self.columns: dict[str, int] = {}  # categories of covariates
        self.constants: dict[str, tuple[torch.Size, Tensor]] = {}  # of native modalities, once looked at

    def prepare(self, data: Any, obs_mask: Any, n: int | None) -> tuple[Data, ObsMask]:
        """Data and masks in their inside form."""
        if isinstance(data, Data) and isinstance(obs_mask, ObsMask):
            return data, obs_mask
        if self.story is not None:
            return self.story.prepare(data, obs_mask, n)
        raw = {name: x for name, x in ({} if data is None else data).items() if x is not None}
        inside = Data(raw)
        inside.size = next((len(x) for x in raw.values()), n if n is not None else 0)
        shapes = {m: shape for m, (shape, _) in self.constants.items()}
        given = {k: v for k, v in ({} if obs_mask is None else obs_mask).items() if k in shapes}
        masks = normalize(given, shapes, inside.size, absent=[m for m in shapes if m not in raw])
        for m, (shape, constant) in self.constants.items():
            inside[m] = (
                fill(raw[m], masks[m], constant) if m in raw else constant.expand((inside.size, *shape))
            )
        inside.filled = True
        return inside, masks

    def run(self, data: Data, masks: ObsMask) -> None:
        """Run the program on prepared rows, under the handlers that are active."""
        if self.story is None:
            self.model(dict(data), first_masks(masks))  # it scores no modality: which masks does not matter
            return
        given = {name: data[name] for name in self.story.covariates if name in data}
        device = next(iter(data.values())).device
        with data_plate(data.size, self.story.size, device):
            self.story.story(**given)

    def draw(self, rows: int) -> None:
        """Draw all sites, modalities too; to be run under ``poutine.mask(mask=False)``."""
        if self.story is not None:
            given = {n: _some(self.data[n], rows) for n in self.story.covariates if self.data.get(n) is not None}
            self.story(given, None, rows)
            return
        data = _first(self.data)
        count = next(len(x) for x in data.values() if isinstance(x, Tensor))
        device = next(x.device for x in data.values() if isinstance(x, Tensor))
        nothing = torch.zeros(count, dtype=torch.bool, device=device)
        self.model(data, dict.fromkeys(self.constants, nothing) if self.constants else _first(self.obs_mask))

    def find(self) -> None:
        """
        The modalities of a native model, from one run on its data.

        :raises ValueError: if it marks none.
        """
        if self.story is not None:
            return
        with looking(self.model), poutine.trace() as tracer, poutine.mask(mask=False):
            self.draw(0)
        for name, site in _samples(tracer.trace):
            m = site["infer"].get("modality", name)
            if "modality" in site["infer"] or (site["infer"].get("unmasked") and m in self.data):
                shape = self.data[m].shape[1:] if m in self.data else site["fn"].event_shape
                self.constants[m] = torch.Size(shape), fill_value(site["fn"].support, site["fn"].event_shape)
        if not self.constants:
            raise ValueError(
                "auto: the model marks no modality. Try one of the following fixes:\n1. pyro_mmvae.observe(story, "
                "modalities)\n2. handlers.observe(data, obs_mask, modalities) around its sites\n"
                "3. handlers.marginalize_missing(model), if it writes pyro.sample(..., obs=, obs_mask=)"
            )


def _first(tensors: Mapping[str, Any] | None) -> Any:
    """The first rows of everything."""
    return None if tensors is None else {n: x[:_ROWS] if isinstance(x, Tensor) else x for n, x in tensors.items()}


def _some(x: Tensor, rows: int) -> Tensor:
    """So many rows, the given ones over and over."""
    return x.index_select(0, torch.arange(rows, device=x.device) % len(x))


def first_masks(masks: ObsMask) -> dict[str, Tensor]:
    """Masks as they come at the door, without the leading dimensions of a table of terms."""
    first = {m: mask[(0,) * (masks.rows[m].dim() - 1)] for m, mask in masks.items()}
    return ObsMask(first, masks.event_dims).door_form()


def is_native(program: Any) -> bool:
    """Whether a program takes data, rather than covariates."""
    inner: Any = messenger.unwrap(inspect.unwrap(program))  # what Pyro's handlers wrap
    called = inner.forward if isinstance(inner, nn.Module) else inner
    try:
        return "data" in inspect.signature(called).parameters
    except (TypeError, ValueError):
        return False


@dataclass
class Look:
    """
    :ivar traces: draws of the program.
    :ivar modalities: sites with data.
    :ivar latents: sites inside the plate ``data`` that a guide samples, in order.
    :ivar hidden: those marked for enumeration.
    :ivar outer: sites outside the plate.
    :ivar private: latent -> its modality.
    :ivar parents: site -> those its distribution depends on.
    :ivar inspected: whether that could be read off the program.
    """

    traces: list[Trace]
    modalities: tuple[str, ...]
    latents: tuple[str, ...]
    hidden: tuple[str, ...]
    outer: tuple[str, ...]
    private: dict[str, str]
    parents: dict[str, frozenset[str]]
    inspected: bool

    @classmethod
    def at(cls, program: Program, rows: int, repeats: int) -> Look:
        """Draw from the program, in evaluation mode, without gradient and without moving the random state."""
        with looking(program.model):
            traces = [_drawn(program, rows)]
            names = tuple(program.constants) if program.story is None else program.story.modalities
            halves = {f"{m}_{half}": m for m in names for half in ("observed", "unobserved")}
            sites = {s: site for s, site in _samples(traces[0]) if s not in names and s not in halves}
            rest = [s for s, site in sites.items() if not site["is_observed"]]
            local = [s for s in rest if any(f.name == "data" for f in sites[s]["cond_indep_stack"])]
            outer = tuple(s for s in rest if s not in local)
            marked = [s for s in local if sites[s]["infer"].get("enumerate") is not None]
            latents = tuple(s for s in local if s not in marked)
            private = {s: sites[s]["infer"][_PRIVATE] for s in latents if _PRIVATE in sites[s]["infer"]}
            if outer:
                traces += [_drawn(program, rows) for _ in range(repeats - 1)]
            parents = _parents(program, halves)
            inspected = parents is not None and set(parents) >= {*local, *outer, *names}
            if parents is None or not inspected:
                parents = everything(outer, local, names, private)
        return cls(traces, tuple(names), latents, tuple(marked), outer, private, parents, inspected)

    def modality(self, trace: Trace, name: str) -> Tensor | None:  # shape: (N, ...), rows first, then other plates
        """The drawn values of a modality; None if the program did not draw it."""
        node = trace.nodes.get(f"{name}_unobserved", trace.nodes.get(name))
        if node is None:
            return None
        value, own = node["value"], node["fn"].event_dim
        nesting = max((-f.dim for f in node["cond_indep_stack"] if f.dim is not None), default=1)
        batch = value.dim() - own
        return value.reshape((1,) * (nesting - batch) + value.shape).movedim(max(nesting, batch) - 1, 0)


@contextmanager
def looking(model: Any) -> Iterator[None]:
    """Run programs without a trace: no gradient, no handlers, no parameters stored, random state and modes kept."""
    with ExitStack() as stack:
        if isinstance(model, nn.Module):
            stack.enter_context(modes_restored(model))
            model.eval()
            devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
        else:
            devices = set()
        for context in (torch.random.fork_rng(devices=list(devices)), torch.no_grad(), poutine.block()):
            stack.enter_context(context)
        stack.enter_context(unregistered())
        store = pyro.get_param_store()
        stack.enter_context(store.scope(store.get_state()))  # PyroModules and pyro.param write into it
        stack.enter_context(stand_ins())
        yield


def _drawn(program: Program, rows: int) -> Trace:
    with poutine.trace() as tracer, poutine.mask(mask=False):
        try:
            program.draw(rows)
        except (RuntimeError, ValueError) as error:
            if not hasattr(error, "__notes__"):
                last = [name for name, _ in _samples(tracer.trace)]
                where = f"after site {last[-1]!r}" if last else "at its first site"
                error.add_note(_STOPPED.format(where=where))
            raise
    return tracer.trace


def _samples(trace: Trace) -> Iterator[tuple[str, Site]]:
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or isinstance(site["fn"], _Subsample):
            continue
        if not site["infer"].get("_deterministic"):
            yield name, site


def _parents(program: Program, halves: Mapping[str, str]) -> dict[str, frozenset[str]] | None:
    """
    The dependency graph; None where the program cannot be followed.

    Values that leave torch lose their mark without a sign. So each latent is also changed alone, and what then
    changes depends on it.
    """

    def draw() -> None:
        with poutine.mask(mask=False):
            program.draw(2)

    try:
        found = parents_of(draw)
        changed = _changed(program)
    except (ArithmeticError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return None
    merged: dict[str, frozenset[str]] = {}
    for site in dict.fromkeys([*found, *changed]):
        name = halves.get(site, site)
        own = found.get(site, frozenset()) | changed.get(site, frozenset())
        merged[name] = merged.get(name, frozenset()) | {halves.get(p, p) for p in own} - {name}
    return merged


def _changed(program: Program) -> dict[str, frozenset[str]]:
    """Site -> latents without which its density at one value would be another, with all other latents held."""
    state = torch.get_rng_state()
    before, other = _drawn(program, 2), _drawn(program, 2)
    sites = dict(_samples(before))
    latents = [s for s, site in sites.items() if not site["is_observed"] and "modality" not in site["infer"]]
    held = {s: sites[s]["value"] for s in latents}
    out: dict[str, set[str]] = {s: set() for s in sites}
    for i, name in enumerate(latents):
        torch.set_rng_state(state)
        with replay({**held, name: other.nodes[name]["value"]}):
            after = _drawn(program, 2)
        for s in [s for s in sites if s != name and s not in latents[:i] and s in after.nodes]:
            value = sites[s]["value"]
            if not torch.equal(sites[s]["fn"].log_prob(value), after.nodes[s]["fn"].log_prob(value)):
                out[s].add(name)
    return {s: frozenset(own) for s, own in out.items()}
