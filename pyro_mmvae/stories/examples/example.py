"""What the example stories share: parameters fixed by a seed, and data sets drawn from them.

Layer: stories.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_mmvae.datasets import MultimodalDataset
from pyro_mmvae.stories.observed import ObservedModel, observe

__all__ = ["Example", "fix", "generator", "hidden", "normal", "simulated", "uniform"]


class Example(nn.Module):
    """
    A story whose parameters are buffers, drawn from a seed when it is made, so that its posterior is a known target.

    Abstract: ``forward``, with the covariates as arguments, is the program of one sample.

    :ivar modalities: names of the observed sites.
    :ivar private: latent site -> the modality it is private to.
    :ivar cells: the share of single cells that :meth:`simulate` hides beside whole modalities.
    """

    modalities: tuple[str, ...]
    private: Mapping[str, str] = {}
    cells: float = 0.0

    def observed(self) -> ObservedModel:
        """The story conditioned on whatever is observed, see :func:`pyro_mmvae.observe`."""
        return observe(self, self.modalities, private=self.private)

    def given(self, n: int, rng: torch.Generator) -> dict[str, Tensor]:  # each shape: (n, ...)
        """Covariates for n rows; none, unless a story has some."""
        return {}

    def simulate(self, n: int, seed: int = 0, *, rate: float = 0.3) -> MultimodalDataset:
        """
        A data set of n samples in which entries are missing completely at random; ``ds.truth`` is the story.

        Drawn on the host, without touching torch's global random state; the dtype is that of the parameters.

        :param n: number of rows.
        :param seed: of the draws and of what is hidden.
        :param rate: the share of modalities hidden, each row keeping one; 0: nothing is hidden, no single cells either.
        :raises ValueError: if n is below 1, or rate is no share that can be hidden.
        """
        host = copy.deepcopy(self).cpu()

        def rows(covariates: Mapping[str, Tensor]) -> None:
            with pyro.plate("data", n, dim=-1):
                host(**covariates)

        ds = simulated(rows, self.modalities, self.given(n, generator(seed)), n, seed)
        ds.truth = self
        return hidden(ds, seed, rate, self.cells)


def generator(seed: int) -> torch.Generator:
    """A generator on the host."""
    return torch.Generator(device="cpu").manual_seed(seed)


def normal(rng: torch.Generator, *shape: int) -> Tensor:
    """Standard normal numbers, the same whatever torch's default dtype is."""
    return torch.randn(shape, generator=rng, dtype=torch.float64, device="cpu")


def uniform(rng: torch.Generator, *shape: int) -> Tensor:
    """Uniform numbers in [0, 1), the same whatever torch's default dtype is."""
    return torch.rand(shape, generator=rng, dtype=torch.float64, device="cpu")


def fix(module: nn.Module, **values: Tensor) -> None:
    """Register buffers in torch's default dtype and on its default device."""
    for name, value in values.items():
        dtype = torch.get_default_dtype() if value.is_floating_point() else value.dtype
        module.register_buffer(name, value.to(torch.get_default_device(), dtype))


def simulated(
    program: Callable[[Mapping[str, Tensor]], Any],
    modalities: tuple[str, ...],
    covariates: Mapping[str, Tensor],
    n: int,
    seed: int,
) -> MultimodalDataset:
    """
    Complete rows drawn by a program of covariates that opens the plate ``data`` itself.

    :raises ValueError: if n is below 1.
    """
    if n < 1:
        raise ValueError(f"n: expected at least 1 row, got {n}.")
    with torch.random.fork_rng(devices=[]), torch.no_grad(), poutine.block():
        torch.set_rng_state(generator(seed).get_state())
        trace = poutine.trace(program).get_trace(covariates)
    return MultimodalDataset({m: trace.nodes[m]["value"] for m in modalities}, covariates=covariates)


def hidden(ds: MultimodalDataset, seed: int, rate: float, cells: float) -> MultimodalDataset:
    """The data set with whole modalities and single cells hidden, each row keeping something."""
    if rate == 0:
        return ds
    ds = ds.hide(rate, seed=seed)
    return ds.hide(cells, seed=seed + 1, level="feature") if cells else ds
