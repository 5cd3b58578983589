"""Give latent sites another prior, without touching the story.

Layer: handlers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message

__all__ = ["Prior", "ReplacePriorMessenger", "replace_prior"]

Prior = TorchDistribution | Callable[[TorchDistribution], TorchDistribution]


class ReplacePriorMessenger(Messenger):
    """
    At each named latent site, the story's distribution becomes another one.

    :param priors: site -> Distribution, or a function from the story's own distribution to the new one.
    """

    def __init__(self, priors: Mapping[str, Prior]) -> None:
        super().__init__()
        self.priors = dict(priors)

    def _pyro_sample(self, msg: Message) -> None:
        if msg["name"] not in self.priors or msg["is_observed"]:
            return
        prior = self.priors[msg["name"]]
        new = prior if isinstance(prior, TorchDistributionMixin) else prior(msg["fn"])
        if new.event_shape != msg["fn"].event_shape:
            raise ValueError(
                f"replace_prior: site {msg['name']!r} has event shape {tuple(msg['fn'].event_shape)}, the new prior "
                f"{tuple(new.event_shape)}. Fix: a prior over the same space (.to_event)."
            )
        # a plate inside this handler has broadcast the own distribution already, one outside will do so
        msg["fn"] = new.expand(torch.broadcast_shapes(new.batch_shape, msg["fn"].batch_shape))


def replace_prior(priors: Mapping[str, Prior]) -> ReplacePriorMessenger:
    """
    Context manager: replace the prior of latent sites.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> with replace_prior({"z": dist.Normal(3.0, 1e-6)}):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> round(float(z), 2)
        3.0
    """
    return ReplacePriorMessenger(priors)
