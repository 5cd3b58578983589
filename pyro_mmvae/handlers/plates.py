"""Plates: one that widens only what lies inside another, and data whose samples hold plates of their own.

Layer: handlers.
"""

from __future__ import annotations

from collections.abc import Iterable

from pyro.poutine.broadcast_messenger import BroadcastMessenger
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor

__all__ = ["WithinPlate", "in_site_layout"]


class WithinPlate(Messenger):
    """
    The plates ``terms`` and ``particles``: copies of the rows, none of the global sites.

    Sites inside the plate named ``within`` get one more batch dimension; sites outside it stay single, so that
    a global site is drawn and scored once, however many terms there are.

    :param name: name of the plate.
    :param size: number of copies.
    :param dim: its batch dimension, left of all the program's own plates.
    """

    def __init__(self, name: str, size: int, dim: int, *, within: str = "data") -> None:
        super().__init__()
        self.frame = CondIndepStackFrame(name, dim, size, 0, size)
        self.within = within

    def _process_message(self, msg: Message) -> None:
        if msg["type"] not in ("sample", "inspect") or not any(
            f.name == self.within for f in msg["cond_indep_stack"]
        ):
            return
        msg["cond_indep_stack"] = (self.frame, *msg["cond_indep_stack"])
        BroadcastMessenger._pyro_sample(msg)


def in_site_layout(
    name: str,
    x: Tensor,  # shape: (B, *plates, *event)
    event_dim: int,
    frames: Iterable[CondIndepStackFrame],
) -> Tensor:  # shape: (*plates, B, *event), ones for plates that the data do not have
    """
    Data of samples with plates of their own, in the layout of a site inside these plates and ``data`` at dim -1.

    Plates right of others come last in both; data without dimensions for plates stay as they are.

    Example::

        >>> import torch, pyro
        >>> from pyro.poutine.runtime import get_plates
        >>> with pyro.plate("data", 3, dim=-1), pyro.plate("visits", 5, dim=-2):
        ...     in_site_layout("x", torch.zeros(3, 5), 0, get_plates()).shape
        torch.Size([5, 3])

    :param frames: the plates around the site, outer ones (terms, particles) included.
    :raises ValueError: if the data have more dimensions than the site has plates and events.
    """
    count = x.dim() - 1 - event_dim
    if count <= 0:
        return x
    dims = sorted((f.dim for f in frames if f.dim is not None and f.name != "data"), reverse=True)[:count]
    if len(dims) < count:
        raise ValueError(
            f"data[{name!r}]: shape {tuple(x.shape)} has {count - len(dims)} dimension(s) too many for a site with "
            f"{event_dim} event dimension(s) in {len(dims)} plate(s) beside 'data'. Fix: .to_event in the model, or a "
            "plate (dim=-2 and left of it) around the site."
        )
    sizes = dict(zip(reversed(dims), x.shape[1 : 1 + count], strict=True))
    x = x.movedim(0, count)
    return x.reshape([sizes.get(d, 1) for d in range(dims[-1], -1)] + list(x.shape[count:]))
