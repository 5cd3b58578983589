"""One training step: loss, gradients, the check that they are finite, clipping, the optimizer.

Layer: training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from pyro_mmvae.objectives import Objective
from pyro_mmvae.training.diverged import Moment, TrainingDiverged, gradient_cause
from pyro_mmvae.training.history import State
from pyro_mmvae.training.rng import get_states

__all__ = ["Step", "default_optimizer", "loss_and_grads", "parameter_groups", "rows_stood_for"]

#: Devices whose torch build has a fused Adam.
FUSED = ("cpu", "cuda")


def rows_stood_for(vae: Any, data: Mapping[str, Tensor]) -> int:
    """The rows that a batch's loss is the loss of: its own, or all, where the plate scales it up to the data set."""
    size = getattr(vae.model, "size", None)
    return next(iter(data.values())).shape[0] if size is None else int(size)


def loss_and_grads(vae: Any, data: Mapping[str, Tensor], obs_mask: Mapping[str, Tensor]) -> Tensor:  # shape: ()
    """
    The loss per row of a batch, in nats, its gradient added to that of the parameters.

    :param vae: has ``model``, ``guide`` and ``objective``.
    :param data: a batch, prepared or not.
    """
    loss = vae.objective.differentiable_loss(vae.model, vae.guide, data, obs_mask) / rows_stood_for(vae, data)
    if loss.requires_grad:  # not where nothing is observed in the whole batch
        loss.backward()
    return loss.detach()


def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    """
    The parameters that require a gradient, one group for each weight decay, in order.

    A module with an attribute ``weight_decay`` asks for it, for the weights of its linear maps and convolutions (not
    for biases, scales, or the parameters of a likelihood); the nearest one that holds a weight decides.

    Example::

        >>> from pyro_mmvae.nn import SmallDecoder
        >>> groups = parameter_groups(SmallDecoder(2, 3, weight_decay=0.5))
        >>> [(group["weight_decay"], [tuple(p.shape) for p in group["params"]]) for group in groups]
        [(0.0, [(3,)]), (0.5, [(3, 2)])]

    :raises ValueError: for an attribute that is no number from 0 on.
    """
    asked: dict[int, float] = {}
    for name, owner in module.named_modules():  # outer ones come first
        decay = getattr(owner, "weight_decay", None)
        if decay is None:
            continue
        if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 <= decay < math.inf:
            raise ValueError(f"{name}: weight_decay: expected a number from 0 on, got {decay!r}.")
        layers = (layer for layer in owner.modules() if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd))
        asked.update((id(layer.weight), float(decay)) for layer in layers)
    found: dict[float, list[nn.Parameter]] = {0.0: []}
    for p in module.parameters():
        if p.requires_grad:
            found.setdefault(asked.get(id(p), 0.0), []).append(p)
    return [{"params": group, "weight_decay": decay} for decay, group in found.items() if group]


def default_optimizer(
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]], lr: float
) -> torch.optim.Optimizer:
    """
    Adam, fused where all parameters are real and lie on one device that can.

    :param parameters: parameters, or groups of them; ``weight_decay`` is that of ``torch.optim.Adam``, added to the
        gradient: the prior of a weight stays what it is whatever the learning rate.
    """
    known: list[Any] = list(parameters)
    flat = [p for entry in known for p in (entry["params"] if isinstance(entry, dict) else [entry])]
    devices = {p.device for p in flat}
    fused = len(devices) == 1 and devices.pop().type in FUSED and all(p.is_floating_point() for p in flat)
    return torch.optim.Adam(known, lr=lr, fused=fused)


class Step:
    """
    ``step(data, obs_mask) -> loss``: one update of the parameters.

    A loss or gradient that is not finite raises before anything is updated. Looking costs one wait for the device per
    step, after the backward pass, for the loss and the norm of the gradient together.

    :param run: the optimizer is applied to ``run.vae``; ``run.step`` counts.
    :param clip_norm: largest 2-norm of the whole gradient, or None.
    :param loss_and_grads: computes a batch's loss and adds its gradients.
    """

    def __init__(
        self,
        run: State,
        clip_norm: float | None,
        device: torch.device,
        loss_and_grads: Callable[..., Tensor] = loss_and_grads,
    ) -> None:
        self.run, self.clip_norm, self.device = run, clip_norm, device
        self.loss_and_grads = loss_and_grads
        self.parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
        self.buffers = _Buffers(run.vae)
        self.advance = getattr(run.vae.objective, "advance", None)

    def __call__(self, data: Mapping[str, Tensor], obs_mask: Mapping[str, Tensor]) -> float:
        run = self.run
        moment = Moment(run, run.step + 1, get_states(self.device), data, obs_mask, self.device)
        self.buffers.save()
        run.optimizer.zero_grad()
        try:
            loss, norm = self._gradient(moment)
        except TrainingDiverged:
            self.buffers.restore()
            raise
        if self.clip_norm is not None:
            clip_grads_with_norm_(self.parameters, self.clip_norm, norm)
        run.optimizer.step()
        if self.advance is not None:
            self.advance()
        run.step += 1
        return loss

    def _gradient(self, moment: Moment) -> tuple[float, Tensor]:
        """The loss, and the 2-norm of the gradient."""
        vae = self.run.vae
        with moment.explained(), self._checks():
            loss = self.loss_and_grads(vae, moment.data, moment.obs_mask)
        grads = [p.grad for p in self.parameters if p.grad is not None]
        norm = get_total_norm(grads) if grads else torch.zeros_like(loss)
        value, size = torch.stack([loss, norm.to(loss)]).tolist()
        if not math.isfinite(value):
            raise moment.diverged(f"the loss is {value}")
        cause = None if math.isfinite(size) else gradient_cause(vae)
        if cause is not None:  # else all gradients are finite and only the sum of their squares is not
            raise moment.diverged(f"the loss is {value:.6g}", cause)
        return value, norm


    def _checks(self) -> AbstractContextManager[Any]:
        """Shapes and arguments are validated in the first step; later ones look at loss and gradient alone."""
        if self.run.step == 0:
            return _Params(self.run.vae)
        own = isinstance(self.run.vae.objective, Objective)  # stock ELBOs warn of NaN where validation is off
        return pyro.validation_enabled(False) if own else nullcontext()


class _Buffers:
    """Copies of a module's buffers (running statistics), renewed only where they were written to."""

    def __init__(self, module: nn.Module) -> None:
        self.owners = [m for m in module.modules() if m._buffers]
        self.copies: dict[tuple[nn.Module, str], tuple[Tensor, int, Tensor]] = {}

    def _each(self) -> Iterator[tuple[tuple[nn.Module, str], Tensor]]:
        for module in self.owners:
            yield from (((module, name), b) for name, b in module._buffers.items() if b is not None)

    def save(self) -> None:
        for key, buffer in self._each():
            known = self.copies.get(key)
            if known is None or known[0] is not buffer or known[1] != buffer._version:
                self.copies[key] = buffer, buffer._version, buffer.clone()

    def restore(self) -> None:
        with torch.no_grad():
            for key, buffer in self._each():
                if key in self.copies:
                    buffer.copy_(self.copies[key][2])


class _Params(Messenger):
    """Refuse ``pyro.param`` statements whose values are no parameters of the vae: they would not be trained."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.known = {id(p) for p in vae.parameters()}

    def _pyro_post_param(self, msg: Message) -> None:
        value = msg["value"]
        leaf = value.unconstrained() if hasattr(value, "unconstrained") else value
        if leaf is None or id(leaf) in self.known or not leaf.requires_grad:
            return
        raise TypeError(
            f"parameter {msg['name']!r} comes from Pyro's param store and is none of the vae's own, so that it would "
            "not be trained. Try one of the following fixes:\n1. nn.Parameter or PyroParam attributes of the story's "
            "or guide's module\n2. pyro.clear_param_store(), if another model left a parameter of this name\n"
            "3. pyro.infer.SVI in place of fit"
        )
