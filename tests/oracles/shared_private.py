"""Linear-Gaussian models with a shared latent and one private latent per modality.

Test layer: a view on `linear_gaussian` with all latents in one line.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .linear_gaussian import Gaussian, LinearGaussian, Masks


class SharedPrivate:
    r"""
    Shared and private causes of every modality.

    .. math:: z \sim N(\mu_0, diag\,\sigma_0^2), \quad w_m \sim N(\mu_m, diag\,\sigma_m^2), \quad
              x_m \mid z, w_m \sim N(W_m z + V_m w_m + b_m, diag\,s_m^2)

    Semantically equivalent to the linear-Gaussian model ``joint`` on the stacked latent (z, w_1, ..., w_M), where W is
    zero between x_m and the private latents of the others. ``slices`` says where each latent is: key ``None`` for z.

    Example::

        >>> one = {"a": torch.ones(1, 1)}
        >>> model = SharedPrivate(one, one, {"a": torch.zeros(1)}, {"a": 1.0}, torch.zeros(1), torch.ones(1))
        >>> loc, cov = model.joint.posterior({"a": torch.tensor([[3.0]])})
        >>> loc
        tensor([[1., 1.]], dtype=torch.float64)

    :param private_weights: V_m, shape (D_m, P_m); a modality without an entry has no private latent.
    :param private_prior: loc and scale of w_m, shapes (P_m,); standard normal without an entry.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        private_weights: Mapping[str, Tensor],
        bias: Mapping[str, Tensor],
        noise: Mapping[str, Tensor | float],
        prior_loc: Tensor,  # shape: (L,)
        prior_scale: Tensor,  # shape: (L,)
        private_prior: Mapping[str, Gaussian] | None = None,
    ) -> None:
        given = private_prior if private_prior is not None else {}
        self.prior: Gaussian = (prior_loc.double(), prior_scale.double())
        self.private_prior: dict[str, Gaussian] = {}
        self.slices: dict[str | None, slice] = {None: slice(0, prior_loc.shape[-1])}
        end = prior_loc.shape[-1]
        for name, block in private_weights.items():
            size = block.shape[1]
            standard = (torch.zeros(size), torch.ones(size))
            loc, scale = given.get(name, standard)
            self.private_prior[name] = (loc.double(), scale.double())
            self.slices[name] = slice(end, end + size)
            end += size
        stacked = {}
        for name, weight in weights.items():
            row = torch.zeros(weight.shape[0], end, dtype=torch.float64)
            row[:, self.slices[None]] = weight.double()
            if name in private_weights:
                row[:, self.slices[name]] = private_weights[name].double()
            stacked[name] = row
        priors = [self.prior, *self.private_prior.values()]
        loc, scale = (torch.cat(part) for part in zip(*priors, strict=True))
        self.joint = LinearGaussian(stacked, bias, noise, loc, scale)
        self.modalities = self.joint.modalities

    def stack(
        self, shared: Gaussian, private: Mapping[str, Gaussian]
    ) -> Gaussian:  # shapes: (B, L) -> (B, L + sum P_m)
        """The factorized posterior over the stacked latent; a private latent without an entry follows its prior."""
        batch = shared[0].shape[0]
        parts = [shared]
        for name, (loc, scale) in self.private_prior.items():
            fallback = (loc.expand(batch, -1), scale.expand(batch, -1))
            parts.append(private.get(name, fallback))
        loc, scale = (torch.cat([p.double() for p in part], -1) for part in zip(*parts, strict=True))
        return loc, scale

    def posterior(
        self, data: Mapping[str, Tensor], mask: Masks | None = None
    ) -> tuple[Tensor, Tensor]:  # shapes: (B, L), (B, L, L)
        """Mean and covariance of p(z | x_O), the private latents integrated out."""
        loc, cov = self.joint.posterior(data, mask)
        at = self.slices[None]
        return loc[:, at], cov[:, at, at]

    def log_evidence(self, data: Mapping[str, Tensor], mask: Masks | None = None) -> Tensor:  # shape: (B,)
        """log p(x_O) in nats, all latents integrated out."""
        return self.joint.log_evidence(data, mask)

    def conditional_log_evidence(
        self, data: Mapping[str, Tensor], target_mask: Masks, given_mask: Masks
    ) -> Tensor:  # shape: (B,)
        """log p(x_A | x_S) in nats."""
        return self.joint.conditional_log_evidence(data, target_mask, given_mask)


def random_shared_private(dims: Mapping[str, int], latent_dim: int, private_dim: int, seed: int = 0) -> SharedPrivate:
    """
    A model with no special values, as :func:`linear_gaussian.random_model`.

    Example::

        >>> random_shared_private({"a": 2, "b": 3}, latent_dim=2, private_dim=1).joint.latent_dim
        4
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return SharedPrivate(
        weights={m: normal(d, latent_dim) for m, d in dims.items()},
        private_weights={m: normal(d, private_dim) for m, d in dims.items()},
        bias={m: normal(d) for m, d in dims.items()},
        noise={m: 0.6 + 0.7 * normal(d).sigmoid() for m, d in dims.items()},
        prior_loc=0.5 * normal(latent_dim),
        prior_scale=0.7 + 0.8 * normal(latent_dim).sigmoid(),
        private_prior={m: (0.5 * normal(private_dim), 0.7 + 0.8 * normal(private_dim).sigmoid()) for m in dims},
    )
