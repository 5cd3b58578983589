"""What an objective scores: the target of a term, told to every ``observe`` below.

Layer: handlers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message, effectful
from torch import Tensor

__all__ = ["ScoreMessenger", "Target", "score", "target_of"]


@dataclass(frozen=True)
class Target:
    """
    Where one modality is scored.

    :ivar mask: bool ``(*batch,)``, right-aligned with the plates (terms on the left of data).
    :ivar index: flattened indices that cover at least all True entries of ``mask``; None where nobody made them.
    :ivar exact: whether ``index`` holds no entry where ``mask`` is False.
    """

    mask: Tensor
    index: Tensor | None = None
    exact: bool = True


@effectful(type="target")
def target_of(modality: str) -> Target | None:
    """The target that the innermost enclosing :func:`score` gives to ``modality``; None: everything observed."""
    return None


class ScoreMessenger(Messenger):
    """
    Score some of the known modalities only.

    Known is not scored: values stay what the data says, densities count where the target is True as well.

    :param target: names of modalities (scored in all rows), or modality -> bool Tensor or :class:`Target`.
        Modalities that a mapping does not name stay scored where observed.
    """

    def __init__(self, target: Iterable[str] | Mapping[str, Tensor | Target]) -> None:
        super().__init__()
        self.names = None if isinstance(target, Mapping) else frozenset(target)
        self.target = (
            {m: t if isinstance(t, Target) else Target(t) for m, t in target.items()}
            if isinstance(target, Mapping)
            else {}
        )

    def _pyro_target(self, msg: Message) -> None:
        if msg["done"]:
            return
        (modality,) = msg["args"]
        if self.names is not None:
            target = Target(torch.tensor(modality in self.names))
        elif modality in self.target:
            target = self.target[modality]
        else:
            return
        msg["value"] = target  # type: ignore[typeddict-item]
        msg["done"] = True


def score(target: Iterable[str] | Mapping[str, Tensor | Target]) -> ScoreMessenger:
    """
    Context manager: score only ``target`` in the ``observe`` programs run inside.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> from pyro_mmvae import handlers
        >>> def story():
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("a", dist.Normal(z, 1.0))
        ...     pyro.sample("b", dist.Normal(z, 1.0))
        >>> data = {"a": torch.zeros(3), "b": torch.zeros(3)}
        >>> with handlers.score({"a"}), pyro.poutine.trace() as t:
        ...     with pyro.plate("data", 3), handlers.observe(data, None, ("a", "b")):
        ...         story()
        >>> t.trace.compute_log_prob()
        >>> float(t.trace.nodes["b"]["log_prob"].abs().sum())
        0.0
    """
    return ScoreMessenger(target)
