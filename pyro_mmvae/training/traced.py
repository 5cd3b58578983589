"""The whole step as one graph: loss and gradients recorded once per shape, then replayed without any bookkeeping.

Layer: training.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_mmvae.handlers.observe import dense_rows
from pyro_mmvae.masks import Data, ObsMask
from pyro_mmvae.nn import FromCallable
from pyro_mmvae.objectives import Context, Objective, Table
from pyro_mmvae.objectives.gates import Holder, call_swapped
from pyro_mmvae.objectives.passes import Programs
from pyro_mmvae.stories import ObservedModel, Story
from pyro_mmvae.training.step import loss_and_grads, rows_stood_for
from pyro_mmvae.training.tidy import tidy

__all__ = ["TracedLoss", "chosen_loss", "traceable"]

#: Steps below which a recording does not pay for itself.
FEW_STEPS = 200

#: Multiply-adds per step that leaving rows out must save to outweigh a recording: what some milliseconds of Python
#: bookkeeping are worth, forward and backward.
RECORD_WORK = 40_000_000

#: Graphs kept; a run whose batches need more goes on without recording.
MOST_GRAPHS = 16


def traceable(vae: Any, *, trusted: bool = False) -> str | None:
    """
    Why the step of ``vae`` cannot be recorded safely; None if it can.

    A recording repeats what Python decided when it was made. That is safe for the library's own modules and torch's;
    a module of a user may decide anew at each call.

    :param trusted: whether the modules of a user are known to do the same at each call.
    """
    model, guide, objective = vae.model, vae.guide, vae.objective
    if not isinstance(objective, Objective) or not isinstance(model, ObservedModel):
        return "the objective or the model is not the library's"
    if not getattr(guide, "vectorized", False) or model.draw:
        return "the guide does not answer masks with leading dimensions, or unobserved values are drawn"
    if any(term.detach for term in objective.terms.terms):
        return "terms have gates"
    if getattr(objective, "gradient", "path") not in ("path", "stl"):
        return "the gradient estimator sets hooks"
    for module in vae.modules():
        if not trusted and not type(module).__module__.startswith(("torch.nn.", "pyro_mmvae.")):
            return f"{type(module).__name__} is no module of torch or of the library"
        if not trusted and _calls_a_function(module):
            return f"{type(module).__name__} calls a function of yours"
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            return "BatchNorm must see the observed rows only"
        if module._forward_hooks or module._forward_pre_hooks:
            return f"{type(module).__name__} has hooks"
    return None


def _calls_a_function(module: nn.Module) -> bool:
    """Whether a module of the library runs code of a user that is no module: a story, a likelihood."""
    own = (module.program,) if isinstance(module, Story) else (module.fn,) if isinstance(module, FromCallable) else ()
    return any(not isinstance(part, nn.Module) for part in own)


def chosen_loss(vae: Any, trace: bool | None, steps: int) -> Callable[..., Tensor]:
    """
    The function that ``fit`` calls for loss and gradients: recorded or not.

    :param trace: True, False, or None for "where it is safe and there are enough steps".
    :raises ValueError: if a recording is asked for and cannot be made.
    """
    if trace is False or (trace is None and (steps < FEW_STEPS or traceable(vae) is not None)):
        return loss_and_grads
    reason = traceable(vae, trusted=trace is True)
    if reason is not None:
        raise ValueError(f"trace=True: the step cannot be recorded, since {reason}. Fix: trace=None.")
    traced = TracedLoss(vae)

    def recorded(vae: Any, data: Data, obs_mask: ObsMask) -> Tensor:
        return traced(data, obs_mask, scale=1.0 / rows_stood_for(vae, data))

    return recorded


@dataclass
class _Graph:
    run: GraphModule
    used: list[int]


class TracedLoss:
    """
    ``loss = traced(data, obs_mask)``: the objective's loss, gradients added to the parameters.

    Semantically equivalent to ``vae.objective.differentiable_loss(...).backward()``, with networks run on all rows.
    Batches for which that would cost more than it saves take that way, too.

    :param vae: see :func:`traceable`.
    """

    def __init__(self, vae: Any) -> None:
        self.vae, self.holder = vae, Holder([vae])
        parameters = dict(self.holder.named_parameters())
        self.names = [n for n, p in parameters.items() if p.requires_grad]
        self.leaves = [parameters[n] for n in self.names]
        self.modules = list(vae.modules())
        owned = {id(b): (m, n) for m in self.modules for n, b in m._buffers.items() if b is not None}
        self.owners = [owned[id(b)] for b in self.holder.buffers()]  # read anew at each step: a buffer can be replaced
        self.graphs: dict[Hashable, _Graph] = {}
        self.possible: tuple[tuple[tuple[bool, ...], ...], tuple[int, int]] | None = None

    def __call__(self, data: Data, obs_mask: ObsMask, *, scale: float = 1.0) -> Tensor:  # shape: ()
        vae = self.vae
        programs = vae.objective.programs(vae.model, vae.guide, data, obs_mask)
        table = vae.objective.table(programs)
        frozen = not all(p.requires_grad for p in self.leaves)
        plain = frozen or _lacks_a_modality(table) or self._gathering_pays(programs, table)
        graph = None if plain else self._graph(programs, table)
        if graph is None:
            loss = vae.objective.loss_of(programs, table) * scale
            if loss.requires_grad:
                loss.backward()
            return loss.detach()
        with torch.no_grad():
            factor = self.leaves[0].new_tensor(scale)
            buffers = [m._buffers[name] for m, name in self.owners]
            loss, *grads = graph.run(self.leaves, buffers, _tensors(programs, table, factor.dtype), factor)
        for i, g in zip(graph.used, grads, strict=True):
            p = self.leaves[i]
            p.grad = g if p.grad is None else p.grad + g
        return loss

    def _gathering_pays(self, programs: Programs, table: Table) -> bool:
        """Whether running the scored rows alone saves more than a recording does."""
        given = {c: programs.data[c] for c in self.vae.model.covariates if c in programs.data}
        sites = self.vae.model.door.outline(given).modalities
        possible, _ = self._possible(programs)
        scored = table.scored.sum((0, 1)).tolist()
        work = 0
        for i, m in enumerate(programs.names):
            cost = sites[m].cost
            saved = sum(row[i] for row in possible) * programs.data.size - scored[i]
            if cost is None:
                return True
            work += saved * programs.num_particles * cost
        return work >= RECORD_WORK

    def _possible(self, programs: Programs) -> tuple[tuple[tuple[bool, ...], ...], tuple[int, int]]:
        """What each draw may score, and the largest sets: those of a sample that observes everything."""
        if self.possible is None:
            objective = self.vae.objective
            every = torch.ones(1, len(programs.names), dtype=torch.bool, device="cpu")
            with torch.random.fork_rng(devices=[]):
                table = objective.terms.table(Context(every, programs.names, objective.step, objective.training))
            selectors = [s for t in objective.terms.terms for s in (t.source, t.target, t.prior)]
            random = any(getattr(s, "random", False) for s in selectors)
            scored = torch.ones_like(table.scored) if random else table.scored
            count = len(programs.names)
            largest = (count, count) if random else table.structure.largest
            self.possible = tuple(tuple(row) for row in scored[:, 0].tolist()), largest
        return self.possible

    def _graph(self, programs: Programs, table: Table) -> _Graph | None:
        possible, largest = self._possible(programs)
        if len(possible) != len(table.structure.gates) or _exceeds(table, possible, largest):
            return None
        structure = replace(table.structure, largest=largest)
        inputs = _tensors(programs, table, self.leaves[0].dtype)
        key = (structure, tuple((t.shape, t.dtype) for t in inputs), tuple(m.training for m in self.modules))
        if key not in self.graphs:
            if len(self.graphs) >= MOST_GRAPHS:
                return None
            programs = replace(programs, possible=possible)
            self.graphs[key] = self._record(programs, replace(table, structure=structure), inputs)
        return self.graphs[key]

    def _record(self, programs: Programs, table: Table, inputs: list[Tensor]) -> _Graph:
        parameters = dict(self.holder.named_parameters())
        leaves = [parameters[n].detach().requires_grad_() for n in self.names]
        frozen = {id(p): p.detach() for p in parameters.values() if not p.requires_grad}
        own_ids = [id(parameters[n]) for n in self.names]
        buffer_ids = [id(b) for b in self.holder.buffers()]
        buffers = [b.clone() for b in self.holder.buffers()]
        used: list[int] = []

        def step(leaves: list[Tensor], buffers: list[Tensor], tensors: list[Tensor], scale: Tensor) -> list[Tensor]:
            own, rows = _rebuilt(programs, table, tensors)
            swapped = frozen | dict(zip(own_ids, leaves, strict=True)) | dict(zip(buffer_ids, buffers, strict=True))
            loss = call_swapped(self.holder, swapped, lambda: self.vae.objective.loss_of(own, rows) * scale)
            found = torch.autograd.grad(loss, leaves, allow_unused=True)
            used[:] = [i for i, g in enumerate(found) if g is not None]
            return _in_own_memory([loss.detach(), *(g for g in found if g is not None)])

        devices = {leaf.device for leaf in leaves if leaf.device.type == "cuda"}
        states = torch.random.fork_rng(devices=list(devices))
        with states, pyro.validation_enabled(False), dense_rows():
            graph = make_fx(step, tracing_mode="real")(leaves, buffers, inputs, leaves[0].new_tensor(1.0))
        tidy(graph)
        return _Graph(graph, list(used))


def _lacks_a_modality(table: Table) -> bool:
    """Whether a whole batch never shows some modality: its networks are then skipped, and get no gradient at all."""
    return not bool((table.scored | table.source).flatten(0, 1).any(0).all())


def _exceeds(table: Table, possible: tuple[tuple[bool, ...], ...], largest: tuple[int, int]) -> bool:
    """Whether a batch scores or shows more than was thought possible: selectors of a user may change with the step."""
    more = table.scored.any(1) & ~torch.tensor(possible, device="cpu")
    return bool(more.any()) or any(now > most for now, most in zip(table.structure.largest, largest, strict=True))


def _in_own_memory(tensors: list[Tensor]) -> list[Tensor]:
    """Copies of those that share memory with another or with themselves: gradients are later changed in place."""
    taken: set[int] = set()
    out = []
    for t in tensors:
        repeated = any(stride == 0 and size > 1 for stride, size in zip(t.stride(), t.shape, strict=True))
        if repeated or t.untyped_storage().data_ptr() in taken:
            t = t.clone(memory_format=torch.contiguous_format)
        taken.add(t.untyped_storage().data_ptr())
        out.append(t)
    return out


def _tensors(programs: Programs, table: Table, dtype: torch.dtype) -> list[Tensor]:
    """Everything that changes from batch to batch; weights in the dtype of the parameters."""
    device = next(iter(programs.data.values())).device
    host = [table.source, table.private, table.scored, table.target, table.weight, *table.beta.values()]
    host += [t for t in (table.rescale, table.prior) if t is not None]
    return [
        *programs.data.values(),
        *programs.obs_mask.values(),
        *programs.obs_mask.rows.values(),
        *(t.to(device, dtype if t.is_floating_point() else t.dtype, non_blocking=True) for t in host),
    ]


def _rebuilt(programs: Programs, table: Table, tensors: list[Tensor]) -> tuple[Programs, Table]:
    """The batch and its table with other tensors in their places, in the order of :func:`_tensors`."""
    rest = iter(tensors)
    data = Data({name: next(rest) for name in programs.data})
    data.size, data.filled = programs.data.size, True
    masks = ObsMask({}, programs.obs_mask.event_dims)
    masks.update({m: next(rest) for m in programs.obs_mask})
    masks.rows = {m: next(rest) for m in programs.obs_mask.rows}
    own = replace(
        table,
        source=next(rest),
        private=next(rest),
        scored=next(rest),
        target=next(rest),
        weight=next(rest),
        beta={site: next(rest) for site in table.beta},
        rescale=None if table.rescale is None else next(rest),
        prior=None if table.prior is None else next(rest),
    )
    return replace(programs, data=data, obs_mask=masks), own
