"""What all objectives share: the table of a batch, the reduction, the clock, Pyro's ELBO interface.

Layer: objectives.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from pyro.infer import ELBO as PyroELBO
from torch import Tensor, nn

from pyro_mmvae.handlers.registration import Registered
from pyro_mmvae.objectives.passes import Programs
from pyro_mmvae.objectives.prepare import prepare
from pyro_mmvae.objectives.run import Options, Run, run
from pyro_mmvae.objectives.subsets import Context
from pyro_mmvae.objectives.table import Table
from pyro_mmvae.objectives.term import Term
from pyro_mmvae.objectives.terms import Terms

__all__ = ["Objective"]

Program = Callable[..., Any]


class Objective(PyroELBO, nn.Module):
    r"""
    Base of the library's objectives: a weighted table of terms for a model and a guide.

    ``SVI`` takes them as any Pyro loss. ``differentiable_loss`` is the fast path: a scalar to call ``backward`` on,
    minus the objective summed over the plate ``data`` times its scale. :meth:`per_sample` is the objective itself,
    in nats per sample. Samples with nothing observed contribute exactly 0.

    :param terms: the table; default: the single term T(O -> O || p), the evidence lower bound.
    :param num_particles: draws per sample and term, K.

    The annealing clock :attr:`step` counts training steps. ``SVI.step`` advances it; with a loop of your own call
    :meth:`advance`. It is saved in the ``state_dict``.
    """

    _step: Tensor

    def __init__(self, terms: Terms | None = None, *, num_particles: int = 1) -> None:
        if num_particles < 1:
            raise ValueError(f"num_particles: expected at least 1, got {num_particles}.")
        nn.Module.__init__(self)
        PyroELBO.__init__(self, num_particles=num_particles, vectorize_particles=True)
        self.terms = Terms([Term()]) if terms is None else terms
        self.parts = nn.ModuleList(self.terms.modules())
        self.registered = Registered("objective")
        self.register_buffer("_step", torch.zeros((), dtype=torch.long))
        self._clock = 0

    @property
    def step(self) -> int:
        """Training steps done."""
        return self._clock

    @property
    def annealing_steps(self) -> int:
        """Training steps until no weight changes any more; of a cyclical schedule, its first period."""
        weights = [w for t in self.terms.terms for w in (t.weight, *_each(t.beta))]
        return max((getattr(w, "steps", 0) for w in weights), default=0)

    def advance(self, steps: int = 1) -> None:
        """Tell the clock that training went on."""
        self._clock += steps
        self._step.fill_(self._clock)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._clock = int(self._step)

    @abstractmethod
    def _reduce(
        self, programs: Programs, parts: list[Table], experts: Any
    ) -> tuple[Tensor, Tensor | float, float]:
        """Objective per sample ``(B,)``, the single part outside the plate (both maximized), the plate's scale."""

    def table(self, programs: Programs) -> Table:
        """The table of terms of one batch."""
        masks = programs.obs_mask
        observed = masks.host
        if observed is None or tuple(masks) != programs.names:
            observed = torch.stack([masks.rows[m].cpu() for m in programs.names], -1)
        return self.terms.table(Context(observed, programs.names, self.step, self.training))

    def programs(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Programs:
        """Both programs on one prepared batch, given as ``data, obs_mask, n``."""
        return prepare(model, guide, *_batch(args, kwargs), self.num_particles)

    def evaluate(self, programs: Programs, table: Table) -> tuple[Tensor, Any, float]:
        """
        Objective per sample, the part outside the plate, the plate's scale: a function of the tensors in its
        arguments and of the parameters.
        """
        guide, programs = programs.guide, replace(programs, first={})
        experts = guide.encode(programs.data, programs.obs_mask) if hasattr(guide, "encode") else None
        return self._reduce(programs, _parts(programs, table), experts)

    def loss_of(self, programs: Programs, table: Table) -> Tensor:  # shape: ()
        """Minus the objective, summed over the plate ``data`` and scaled as Pyro does."""
        value, outside, scale = self.evaluate(programs, table)
        total = value.sum() if scale == 1.0 else value.sum() * scale
        return -(total + outside)

    def per_sample(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:  # shape: (B,)
        """The objective of each sample, in nats, without the scale of the plate and without global sites."""
        programs = self.programs(model, guide, *args, **kwargs)
        return self.evaluate(programs, self.table(programs))[0]

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Minus the objective, summed over the plate ``data`` and scaled as Pyro does; call ``backward`` on it."""
        programs = self.programs(model, guide, *args, **kwargs)
        return self.loss_of(programs, self.table(programs))

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The loss as a number, for evaluation; the clock stands still."""
        with torch.no_grad():
            return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The loss and its gradients, as ``SVI.step`` calls it; advances the clock."""
        for program in (model, guide):
            register = getattr(program, "register", None)
            if register is not None:
                register()
        self.registered(self.parts)
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        self.advance()
        return float(loss.detach())

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError("This objective runs tables of terms, not single traces.")

    def _run(self, programs: Programs, table: Table, options: Options, experts: Any) -> Run:
        return run(programs, table, options, experts)


def _each(beta: Any) -> list[Any]:
    return list(beta.values()) if isinstance(beta, Mapping) else [beta]


def _batch(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """``(data, obs_mask, n)`` however they were passed."""
    names = ("data", "obs_mask", "n")
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    unknown = set(given) - set(names)
    if unknown or len(args) > len(names):
        raise TypeError(f"expected data, obs_mask and n, got {len(args)} positional arguments and {sorted(kwargs)}.")
    return given.get("data"), given.get("obs_mask"), given.get("n")


def _parts(programs: Programs, table: Table) -> list[Table]:
    """Draws that run together: all of them, one by one (a guide written by hand), or by gate."""
    gates = table.structure.gates
    groups: dict[Any, list[int]] = {}
    for u, gate in enumerate(gates):
        groups.setdefault(gate if programs.vectorized else u, []).append(u)
    return [table] if len(groups) == 1 else [table.select(draws) for draws in groups.values()]
