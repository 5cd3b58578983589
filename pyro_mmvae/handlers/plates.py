"""A plate that widens only what lies inside another plate.

Layer: handlers.
"""

from __future__ import annotations

from pyro.poutine.broadcast_messenger import BroadcastMessenger
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message

__all__ = ["WithinPlate"]


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
