"""From whatever programs and data came to one checked batch, and the state in which it is evaluated.

Layer: inference, private.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pyro_mmvae.datasets import MultimodalDataset
from pyro_mmvae.handlers.registration import unregistered
from pyro_mmvae.masks import Data, ObsMask, restrict
from pyro_mmvae.nn import modes_restored
from pyro_mmvae.objectives.prepare import prepare
from pyro_mmvae.stories import ObservedModel

__all__ = ["Batch", "at_home", "evaluation", "known_names", "positive", "prepared", "split"]

Program = Callable[..., Any]
Values = Mapping[str, Tensor | None] | MultimodalDataset | None
Masks = Mapping[str, Tensor | None] | None


@dataclass(frozen=True)
class Batch:
    """
    A pair of programs on checked rows.

    :ivar names: the modalities.
    :ivar nesting: plates of the story, ``data`` included; the plate of draws lies at dim ``-nesting - 2``.
    :ivar device: where the input was, and results go.
    """

    model: Program
    guide: Program | None
    data: Data
    obs_mask: ObsMask
    names: tuple[str, ...]
    nesting: int
    device: torch.device

    @property
    def size(self) -> int:
        """The number of rows, B."""
        return self.data.size

    @property
    def is_story(self) -> bool:
        """Whether the model was made by ``pyro_mmvae.observe``, so that its story can be run by itself."""
        return isinstance(self.model, ObservedModel)

    @property
    def covariates(self) -> dict[str, Tensor]:
        """The story's arguments."""
        names = self.model.covariates if isinstance(self.model, ObservedModel) else ()
        return {name: self.data[name] for name in names if name in self.data}

    def masks(self, given: Collection[str] | None) -> ObsMask:
        """What is observed of the modalities in ``given``."""
        return self.obs_mask if given is None else restrict(self.obs_mask, given)

    def take(self, rows: slice | Tensor) -> Batch:
        """Some of the rows."""
        data = Data({name: x[rows] for name, x in self.data.items()})
        mask = ObsMask({m: x[rows] for m, x in self.obs_mask.items()}, self.obs_mask.event_dims)
        data.size, data.filled = next(iter(mask.values())).shape[0], self.data.filled
        return replace(self, data=data, obs_mask=mask)


def prepared(model: Program, guide: Program | None, data: Values, obs_mask: Masks, n: int | None = None) -> Batch:
    """
    Check and fill what came, in the dtype and on the device of the parameters.

    :raises TypeError: if masks come beside a dataset, which has its own.
    :raises NotImplementedError: for a model in which no modality can be found.
    """
    values: Any = data
    if isinstance(data, MultimodalDataset):
        if obs_mask is not None:
            raise TypeError("obs_mask: a dataset has its own. Fix: pass data.data and a mask, or the dataset alone.")
        values, obs_mask = data.data, data.obs_mask
    if values is None and n is None:
        raise ValueError("data: nothing to condition on, so the number of rows is unknown. Fix: generate(n).")
    device = None
    if isinstance(values, Mapping):
        device = next((x.device for x in values.values() if isinstance(x, Tensor)), None)
    if not isinstance(values, Data):
        values, obs_mask = at_home(values, model, guide), at_home(obs_mask, model, guide)
    programs = prepare(model, guide, values, obs_mask, n, 1)  # type: ignore[arg-type]
    if not programs.names:
        raise NotImplementedError(
            "model: no modality was found in it. Fix: make it with pyro_mmvae.observe(story, modalities), or mark its "
            "modality sites with pyro_mmvae.handlers.observe."
        )
    home = next(iter(programs.obs_mask.values())).device
    where = home if device is None else device
    return Batch(model, guide, programs.data, programs.obs_mask, programs.names, programs.nesting, where)


def at_home(tensors: Any, *programs: Program | None) -> Any:
    """Tensors on the device of the first parameter, floating ones in its dtype."""
    modules = [p for p in programs if isinstance(p, nn.Module)]
    like = next((p for module in modules for p in module.parameters() if p.is_floating_point()), None)
    if like is None or not isinstance(tensors, Mapping):
        return tensors
    return {
        name: x.to(like if x.is_floating_point() else like.device) if isinstance(x, Tensor) else x
        for name, x in tensors.items()
    }


def split(batch: Batch, batch_size: int) -> Iterator[Batch]:
    """Blocks of rows; a model that opens its own plates gets all rows at once."""
    positive("batch_size", batch_size)
    if not batch.is_story or batch.size <= batch_size:
        yield batch
        return
    for start in range(0, batch.size, batch_size):
        yield batch.take(slice(start, start + batch_size))


@contextmanager
def evaluation(*programs: object) -> Iterator[None]:
    """Evaluation mode, no gradients, Pyro's store untouched; afterwards every module is as it was."""
    held = [*programs, *(getattr(p, "observed", None) for p in programs)]
    modules = [p for p in held if isinstance(p, nn.Module)]
    with modes_restored(*modules), torch.no_grad(), unregistered():
        for module in modules:
            module.eval()
        yield


def known_names(what: str, names: Collection[str] | None, known: Collection[str]) -> tuple[str, ...] | None:
    """
    The names in the story's order, None for None.

    :raises TypeError: for a single string.
    :raises ValueError: for unknown names.
    """
    if names is None:
        return None
    if isinstance(names, str):
        raise TypeError(f"{what}: expected a set of names, got the string {names!r}. Fix: {what}={{{names!r}}}.")
    unknown = sorted(str(name) for name in set(names) - set(known))
    if unknown:
        raise ValueError(f"{what}: {unknown} are no modalities; known are {list(known)}.")
    return tuple(name for name in known if name in set(names))


def positive(what: str, value: int) -> int:
    """
    A number of draws or rows.

    :raises ValueError: if it is below 1.
    """
    if value < 1:
        raise ValueError(f"{what}: expected at least 1, got {value}.")
    return value
