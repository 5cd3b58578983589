"""Running a program on values drawn elsewhere.

Layer: handlers.
"""

from __future__ import annotations

from collections.abc import Mapping

from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor

__all__ = ["ReplayMessenger", "replay"]


class ReplayMessenger(Messenger):
    """Sample sites named in ``values`` take those values; they stay latent, and their densities count."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Message) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"] = self.values[msg["name"]]
            msg["done"] = True


def replay(values: Mapping[str, Tensor]) -> ReplayMessenger:
    """
    Context manager: latent sites inside take the values given.

    Semantically equivalent to ``poutine.replay`` with a trace that holds these values.

    Example::

        >>> import pyro, torch, pyro.distributions as dist
        >>> with replay({"z": torch.tensor(3.0)}):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> float(z)
        3.0
    """
    return ReplayMessenger(values)
