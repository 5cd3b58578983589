"""Random states as values: taken, set, made from a seed, put back.

Layer: training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["get_states", "preserved", "seeded_states", "set_states"]

States = dict[str, Tensor]


def get_states(device: torch.device) -> States:
    """The states of torch's global generators: the host's, and the one of a CUDA device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Put the global generators into the given states; generators of other devices stay as they are."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def seeded_states(seed: int, device: torch.device) -> States:
    """The states that seeding with ``seed`` gives, without touching the global generators."""
    states = {"cpu": torch.Generator(device="cpu").manual_seed(seed).get_state()}
    if device.type == "cuda":
        states["cuda"] = torch.Generator(device=device).manual_seed(seed).get_state()
    return states


@contextmanager
def preserved(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """
    The global random state is afterwards as it was; inside it starts from ``seed``, if there is one.

    Example::

        >>> before = torch.get_rng_state()
        >>> with preserved(torch.device("cpu"), seed=1):
        ...     x = torch.randn(3)
        >>> torch.equal(before, torch.get_rng_state())
        True
    """
    before = get_states(device)
    try:
        if seed is not None:
            set_states(seeded_states(seed, device), device)
        yield
    finally:
        set_states(before, device)
