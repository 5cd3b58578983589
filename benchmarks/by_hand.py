"""The losses of six methods written by hand in plain PyTorch, as a researcher would: dense, masked, no framework."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["LOSSES", "Nets", "kl", "log_normal", "mlp"]

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


def mlp(sizes: tuple[int, ...]) -> nn.Sequential:
    """Linear layers with ReLU between."""
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes[:-1]):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(*sizes[-2:]))


class Nets(nn.Module):
    """Encoders to (loc, log scale), decoders to a mean, and a joint encoder over masked features."""

    def __init__(self, count: int, size: int, hidden: int, latent: int, *, joint: bool = False) -> None:
        super().__init__()
        self.enc = nn.ModuleList(mlp((size, hidden, hidden, 2 * latent)) for _ in range(count))
        self.dec = nn.ModuleList(mlp((latent, hidden, hidden, size)) for _ in range(count))
        self.latent, self.count = latent, count
        if joint:
            self.features = nn.ModuleList(nn.Sequential(nn.Linear(size, hidden), nn.ReLU()) for _ in range(count))
            self.joint = mlp((count * (hidden + 1), hidden, 2 * latent))


def _experts(nets: Nets, x: list[Tensor]) -> tuple[Tensor, Tensor]:  # (M, B, D) each
    out = torch.stack([e(v) for e, v in zip(nets.enc, x, strict=True)])
    loc, log_scale = out.chunk(2, -1)
    return loc, log_scale.exp()


def log_normal(x: Tensor, loc: Tensor) -> Tensor:
    return (-0.5 * (x - loc).square() - HALF_LOG_TWO_PI).sum(-1)


def kl(loc: Tensor, scale: Tensor, loc0: Tensor | float = 0.0, scale0: Tensor | float = 1.0) -> Tensor:
    ratio = (scale / scale0).square()
    return 0.5 * (ratio + ((loc - loc0) / scale0).square() - 1 - ratio.log()).sum(-1)


def _product(loc: Tensor, scale: Tensor, mask: Tensor, prior: Tensor | float) -> tuple[Tensor, Tensor]:
    """mask (M, *, B), experts (M, B, D) or with the same leading dimensions."""
    tau = scale.square().reciprocal()
    weighted = mask.unsqueeze(-1) * tau
    total = weighted.sum(0) + prior
    return (weighted * loc).sum(0) / total, total.rsqrt()


def mvae_joint(nets: Nets, x: list[Tensor], mask: Tensor) -> Tensor:
    """Joint evidence lower bound, product of experts; mask (M, B)."""
    loc, scale = _product(*_experts(nets, x), mask, 1.0)
    z = loc + scale * torch.randn_like(loc)
    rec = sum(mask[i] * log_normal(v, d(z)) for i, (v, d) in enumerate(zip(x, nets.dec, strict=True)))
    return (kl(loc, scale) - rec).sum()


def mvae(nets: Nets, x: list[Tensor], mask: Tensor) -> Tensor:
    """Joint and unimodal terms; each decoder runs on the joint row and on its own."""
    e_loc, e_scale = _experts(nets, x)
    count = nets.count
    rows = torch.cat([mask.unsqueeze(1), torch.eye(count, dtype=torch.bool).unsqueeze(-1) & mask.unsqueeze(1)], 1)
    loc, scale = _product(e_loc.unsqueeze(1), e_scale.unsqueeze(1), rows, 1.0)  # (J, B, D)
    z = loc + scale * torch.randn_like(loc)
    valid = rows.any(0)
    rec: Tensor | float = 0.0
    for i, (v, d) in enumerate(zip(x, nets.dec, strict=True)):
        both = torch.stack([z[0], z[1 + i]])
        rec = rec + (mask[i] * log_normal(v, d(both))).sum()
    return (valid * kl(loc, scale)).sum() - rec


def mmvae(nets: Nets, x: list[Tensor], mask: Tensor) -> Tensor:
    """K = 1, density of the mixture, stratified over experts."""
    loc, scale = _experts(nets, x)
    z = loc + scale * torch.randn_like(loc)
    log_pi = torch.where(mask, 0.0, -torch.inf) - mask.sum(0).clamp(min=1).log()
    log_q = (-0.5 * ((z.unsqueeze(1) - loc) / scale).square() - scale.log() - HALF_LOG_TWO_PI).sum(-1)  # (J, L, B)
    safe = torch.where(mask.any(0), log_pi, -math.log(nets.count))
    log_mix = (log_q + safe).logsumexp(1)
    log_p = (-0.5 * z.square() - HALF_LOG_TWO_PI).sum(-1)
    rec = sum(mask[i] * log_normal(v, d(z)) for i, (v, d) in enumerate(zip(x, nets.dec, strict=True)))
    weight = mask / mask.sum(0).clamp(min=1)
    return -(weight * (rec + log_p - log_mix)).sum()


def mopoe(nets: Nets, x: list[Tensor], mask: Tensor) -> Tensor:
    """All subsets of what is observed; the prior is an expert of the full set."""
    e_loc, e_scale = _experts(nets, x)
    count = nets.count
    table = torch.tensor([[(s >> i) & 1 for i in range(count)] for s in range(1, 2**count)]).bool().T  # (M, S)
    inside = (mask.unsqueeze(1) | ~table.unsqueeze(-1)).all(0)  # (S, B)
    rows = table.unsqueeze(-1) & inside
    prior = (~rows.any(0) | rows.all(0)).unsqueeze(-1).float()
    loc, scale = _product(e_loc.unsqueeze(1), e_scale.unsqueeze(1), rows, prior)
    z = loc + scale * torch.randn_like(loc)
    rec = sum(mask[i] * log_normal(v, d(z)) for i, (v, d) in enumerate(zip(x, nets.dec, strict=True)))
    weight = inside / inside.sum(0).clamp(min=1)
    return -(weight * (rec - kl(loc, scale))).sum()


def mvtcae(nets: Nets, x: list[Tensor], mask: Tensor, alpha: float = 5 / 6, beta: float = 2.5) -> Tensor:
    """One product without prior, KL to the prior and to every observed expert."""
    e_loc, e_scale = _experts(nets, x)
    none = (~mask.any(0)).unsqueeze(-1).float()
    loc, scale = _product(e_loc, e_scale, mask, none)
    z = loc + scale * torch.randn_like(loc)
    count = mask.sum(0).clamp(min=1)
    rec = sum(mask[i] * log_normal(v, d(z)) for i, (v, d) in enumerate(zip(x, nets.dec, strict=True)))
    to_experts = (mask * kl(loc, scale, e_loc, e_scale)).sum(0)
    value = (count - alpha) / count * rec - beta * ((1 - alpha) * kl(loc, scale) + alpha / count * to_experts)
    return -(mask.any(0) * value).sum()


def jmvae(nets: Nets, x: list[Tensor], mask: Tensor, alpha: float = 0.1) -> Tensor:
    """A masked joint encoder, and unimodal encoders that follow it."""
    e_loc, e_scale = _experts(nets, x)
    h = torch.stack([f(v) for f, v in zip(nets.features, x, strict=True)], 1) * mask.T.unsqueeze(-1)
    joint = nets.joint(torch.cat([h.flatten(1), mask.T], -1))
    j_loc, j_log_scale = joint.chunk(2, -1)
    single = (mask.sum(0) == 1).unsqueeze(-1)
    weights = mask.unsqueeze(-1)
    loc = torch.where(single, (weights * e_loc).sum(0), j_loc)
    scale = torch.where(single, (weights * e_scale).sum(0), j_log_scale.exp())
    z = loc + scale * torch.randn_like(loc)
    rec = sum(mask[i] * log_normal(v, d(z)) for i, (v, d) in enumerate(zip(x, nets.dec, strict=True)))
    to_experts = (mask * kl(loc, scale, e_loc, e_scale)).sum(0)
    return -(mask.any(0) * (rec - kl(loc, scale) - alpha * to_experts)).sum()


LOSSES: Mapping[str, Callable[[Nets, list[Tensor], Tensor], Tensor]] = {
    "MVAE joint": mvae_joint,
    "MVAE": mvae,
    "MMVAE": mmvae,
    "MoPoE": mopoe,
    "MVTCAE": mvtcae,
    "JMVAE": jmvae,
}
