"""Tiny networks whose posteriors and likelihoods are those of the linear-Gaussian oracles.

Test layer: plain `nn.Module`s, as a user would write them; no base class of the library.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_mmvae.distributions import Lazy

FAMILIES = {"normal": dist.Normal, "laplace": dist.Laplace}


class Expert(nn.Module):
    """
    A linear encoder: loc = A x + c, scale = s exp(0.2 tanh(sum x)), so that no two rows have the same scale.

    :param matrix: A, shape (L, D). :param offset: c, shape (L,). :param scale: s, shape (L,).
    """

    def __init__(self, matrix: Tensor, offset: Tensor, scale: Tensor, family: str = "normal") -> None:
        super().__init__()
        self.matrix, self.offset = nn.Parameter(matrix.clone()), nn.Parameter(offset.clone())
        self.log_scale, self.family = nn.Parameter(scale.log()), family

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        loc = nn.functional.linear(x, self.matrix, self.offset)
        scale = (self.log_scale + 0.2 * x.sum(-1, keepdim=True).tanh()).exp()
        return FAMILIES[self.family](loc, scale).to_event(1)


class Decoder(nn.Module):
    """
    x = W z + b + s eps, as a plain distribution, or as a lazy one.

    :ivar dtypes: what each run of the network returned, for tests of autocast.
    """

    def __init__(self, weight: Tensor, bias: Tensor, scale: Tensor, *, lazy: bool, cost: int | None = None) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
        self.log_scale = nn.Parameter(scale.log())
        self.lazy, self.cost = lazy, cost
        self.dtypes: list[torch.dtype] = []

    def dense(self, z: Tensor) -> dist.TorchDistribution:
        loc = nn.functional.linear(z, self.weight, self.bias)
        self.dtypes.append(loc.dtype)
        return dist.Normal(loc, self.log_scale.exp()).to_event(1)

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        if not self.lazy:
            return self.dense(z)
        support = constraints.independent(constraints.real, 1)
        return Lazy(self.dense, z, event_shape=self.bias.shape, support=support, cost=self.cost)


class Prior(nn.Module):
    """p(z) with parameters."""

    def __init__(self, loc: Tensor, scale: Tensor, family: str = "normal") -> None:
        super().__init__()
        self.loc, self.log_scale, self.family = nn.Parameter(loc.clone()), nn.Parameter(scale.log()), family

    def forward(self) -> dist.TorchDistribution:
        return FAMILIES[self.family](self.loc, self.log_scale.exp()).to_event(1)


class JointExpert(nn.Module):
    """A joint encoder: the mean of linear maps of what the mask shows, a scale that depends on their number."""

    def __init__(self, experts: Mapping[str, Expert]) -> None:
        super().__init__()
        self.modalities = tuple(experts)
        self.width = max(e.matrix.shape[1] for e in experts.values())
        pad = nn.functional.pad
        stacked = [pad(e.matrix.detach(), (0, self.width - e.matrix.shape[1])) for e in experts.values()]
        self.matrix = nn.Parameter(torch.stack(stacked))  # (M, L, F)
        self.offset = nn.Parameter(torch.stack([e.offset.detach() for e in experts.values()]))  # (M, L)
        self.log_scale = nn.Parameter(torch.full_like(self.offset[0], 0.9).log())

    def features(self, data: Mapping[str, Tensor]) -> Tensor:  # shape: (B, M, F)
        rows = [nn.functional.pad(data[m], (0, self.width - data[m].shape[-1])) for m in self.modalities]
        return torch.stack(rows, -2)

    def head(self, features: Tensor, mask: Tensor) -> dist.TorchDistribution:  # shapes: (B, M, F), (*lead, B, M)
        own = torch.einsum("bmf,mlf->bml", features, self.matrix) + self.offset
        count = mask.sum(-1, keepdim=True)
        kept = torch.where(mask.unsqueeze(-1), own, 0.0)
        loc = kept.sum(-2) / count.clamp(min=1)
        scale = (self.log_scale - 0.1 * count.to(loc) + 0.1 * kept.sum((-1, -2)).tanh().unsqueeze(-1)).exp()
        return dist.Normal(loc, scale).to_event(1)
