"""Gradient estimators of importance-weighted bounds: what happens to the gradient on its way to the draws.

Layer: objectives.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pyro_mmvae.objectives.log_weights import LogWeights
from pyro_mmvae.objectives.run import Run

__all__ = ["Alias", "mixture_dreg"]


class Alias:
    """
    Second names of the latent draws: densities are evaluated at them, so that gradients passing through can be scaled.

    Latents that depend on each other are not scaled twice, since the guide draws from the first names.

    :param cut: give leaves instead of aliases: gradients at the draws are taken explicitly.
    """

    def __init__(self, *, cut: bool) -> None:
        self.cut = cut
        self.draws: dict[str, tuple[Tensor, Tensor]] = {}

    def __call__(self, site: str, z: Tensor) -> Tensor:
        if not z.requires_grad:
            return z
        second = z.detach().requires_grad_() if self.cut else z.view_as(z)
        self.draws[site] = (z, second)
        return second

    def scale_gradients(
        self,
        share: Tensor,  # shape: (K, J, B)
        beta: Mapping[str, Tensor],
        done: Run,
        nesting: int,
    ) -> None:
        r"""
        The doubly reparametrized factor at each draw.

        The gradient through z already carries the share w; it is multiplied by :math:`1 - \beta (1 - w)`, which is w
        for :math:`\beta = 1`. Neutral draws keep their gradient: they have no density in the weights.
        """
        for site, (_, second) in self.draws.items():
            if site not in done.guide.fns:
                continue
            own = beta.get(site, beta[""]).to(share)
            scaled = 1 - own * (1 - share)
            if site in done.counted:
                scaled = torch.where(done.counted[site], scaled, 1.0)
            factor = _layout(scaled, second, len(done.guide.fns[site].event_shape), nesting)
            second.register_hook(lambda g, factor=factor: g * factor)


def _layout(
    per_row: Tensor,  # shape: (K, U, B)
    z: Tensor,  # shape: (K?, U?, *plates, B, *event)
    event_dim: int,
    nesting: int,
) -> Tensor:
    """Coefficients per particle, draw and sample, in the layout of a draw."""
    full = per_row.reshape(per_row.shape[:2] + (1,) * (nesting - 1) + per_row.shape[2:] + (1,) * event_dim)
    while full.dim() > z.dim():
        full = full.squeeze(0)
    return full


def mixture_dreg(
    weights: LogWeights,
    alias: Alias,
    done: Run,
) -> Tensor:  # shape: (B,)
    r"""
    Surrogate whose gradient is the exact doubly reparametrized gradient for a mixture density.

    With responsibilities :math:`\rho_m(z) = \pi_m q_m(z) / \sum_l \pi_l q_l(z)` and the share
    :math:`\bar w^{(m)}_{jk}` of particle (j, k) among the other K - 1 particles of component m,

    .. math:: \nabla_{\phi_j} = \pi_j E \sum_k \Bigl( A_{jk} \partial_z \log w(z_{jk})
        - \sum_m \rho_m \bar w^{(m)}_{jk} \partial_z \log \rho_m(z_{jk}) \Bigr) \partial_{\phi_j} z_{jk}, \qquad
        A_{jk} = \bar w^{(j)}_{jk} - \sum_m \rho_m \bar w^{(m)}_{jk} (1 - \bar w^{(m)}_{jk})

    One component: :math:`A = \bar w^2`. K = 1: A = 1 and the second part vanishes.
    """
    if weights.log_rho is None:
        raise ValueError("mixture_dreg needs the responsibilities of a mixture density.")
    log_w, log_rho, weight = weights.log_w, weights.log_rho, weights.weight
    with torch.no_grad():
        rho = log_rho.exp()
        shares = _shares_among(log_w)  # (K, J, M, B)
        own = log_w.softmax(0)
        factor = own - (rho * shares * (1 - shares)).sum(2)
    pulled = weight * (factor * log_w - (rho * shares * _where_present(log_rho)).sum(2))
    seconds = [second for _, second in alias.draws.values()]
    found = torch.autograd.grad(pulled.sum(), seconds, retain_graph=True, allow_unused=True)
    surrogate = (weight * own * log_w).sum((0, 1))
    for (site, (first, _)), gradient in zip(alias.draws.items(), found, strict=True):
        if gradient is not None and site in done.guide.fns:
            rows = (gradient * first).movedim(-1 - len(done.guide.fns[site].event_shape), 0)
            surrogate = surrogate + rows.flatten(1).sum(1)
    return surrogate


def _shares_among(log_w: Tensor) -> Tensor:  # (K, J, B) -> (K, J, M, B)
    """w(z_jk) / (w(z_jk) + sum over the other particles l != k of component m)."""
    count = len(log_w)
    others = log_w.unsqueeze(0).expand(count, -1, -1, -1).clone()  # (K, K', M, B)
    others.diagonal(dim1=0, dim2=1).fill_(-torch.inf)
    rest = others.logsumexp(1).unsqueeze(1)  # (K, 1, M, B)
    mine = log_w.unsqueeze(2)
    return (mine - torch.logaddexp(mine, rest)).exp()


def _where_present(log_rho: Tensor) -> Tensor:
    """Absent components have responsibility 0 and no gradient."""
    return torch.where(log_rho.isinf(), 0.0, log_rho)
