"""Linear-Gaussian models solved exactly: posterior, evidence, conditional evidence for any mask.

Test layer: plain torch in float64, one row at a time, independent of the library.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

Masks = Mapping[str, Tensor]  # modality -> (B,) or (B, D_m), bool, True = counts
Gaussian = tuple[Tensor, Tensor]  # loc and scale, both (..., L); scale is the standard deviation


def features(
    mask: Masks | None,
    name: str,
    row: int,
    size: int,
) -> Tensor:  # shape: (size,), bool
    """
    The features of one row of one modality that count; ``None`` means all. Every modality must be a key of ``mask``.

    Example::

        >>> features({"a": torch.tensor([True, False])}, "a", 1, 2)
        tensor([False, False])

    :raises ValueError: if the modality has no mask, or a mask of another shape.
    """
    if mask is None:
        return torch.ones(size, dtype=torch.bool)
    if name not in mask:
        raise ValueError(f"mask of modality {name!r}: expected one entry per modality, got {sorted(mask)}; add it")
    entry = mask[name][row]
    if entry.dtype != torch.bool or entry.shape not in ((), (size,)):
        raise ValueError(f"mask of modality {name!r}: expected bool () or ({size},), got {entry.dtype} {entry.shape}")
    return entry.expand(size)


def normal_log_density(
    x: Tensor,  # shape: (D,)
    loc: Tensor,  # shape: (D,)
    cov: Tensor,  # shape: (D, D)
) -> Tensor:  # shape: ()
    """
    Log-density of a Gaussian with full covariance, nats; 0 for an empty vector.

    Example::

        >>> round(normal_log_density(torch.zeros(1), torch.zeros(1), torch.eye(1)).item(), 4)
        -0.9189
    """
    delta = x - loc
    return -0.5 * (x.numel() * math.log(2 * math.pi) + torch.logdet(cov) + delta @ torch.linalg.solve(cov, delta))


class LinearGaussian:
    r"""
    The model whose every conditional is known.

    .. math:: z \sim N(\mu_0, diag\,\sigma_0^2), \qquad x_m \mid z \sim N(W_m z + b_m, diag\,s_m^2)

    Masks may be per sample (B,) or per feature (B, D_m); masked entries are never read, so they may hold NaN.
    Results are float64 and differentiable in the parameters and the data.

    Example::

        >>> one, zero = torch.ones(1), torch.zeros(1)
        >>> model = LinearGaussian({"a": torch.ones(1, 1)}, {"a": zero}, {"a": 1.0}, zero, one)
        >>> loc, cov = model.posterior({"a": torch.tensor([[2.0]])})
        >>> loc.item(), cov.item()
        (1.0, 0.5)

    :param weights: W_m, shape (D_m, L).
    :param bias: b_m, shape (D_m,).
    :param noise: s_m, standard deviation, a number or shape (D_m,).
    :param prior_loc: mu_0, shape (L,).
    :param prior_scale: sigma_0, standard deviation, shape (L,).
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        bias: Mapping[str, Tensor],
        noise: Mapping[str, Tensor | float],
        prior_loc: Tensor,  # shape: (L,)
        prior_scale: Tensor,  # shape: (L,)
    ) -> None:
        self.weights = {m: weights[m].double() for m in weights}
        self.bias = {m: bias[m].double() for m in weights}
        self.noise = {
            m: torch.as_tensor(noise[m], dtype=torch.float64).expand(w.shape[0]) for m, w in self.weights.items()
        }
        self.prior: Gaussian = (prior_loc.double(), prior_scale.double())
        self.modalities = tuple(weights)
        self.latent_dim = prior_loc.shape[-1]
        for name, weight in self.weights.items():
            if weight.shape != (self.bias[name].shape[0], self.latent_dim):
                raise ValueError(f"modality {name!r}: weights {tuple(weight.shape)} fit neither bias nor prior")

    def _observed(
        self, data: Mapping[str, Tensor], mask: Masks | None, row: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One row's counted features, all modalities in a line: x (d,), W (d, L), b (d,), s (d,)."""
        parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for name, weight in self.weights.items():
            keep = features(mask, name, row, weight.shape[0])
            if keep.any():
                parts.append(
                    (data[name][row][keep].double(), weight[keep], self.bias[name][keep], self.noise[name][keep])
                )
        if not parts:
            empty = weight.new_zeros(0)
            return empty, weight.new_zeros(0, self.latent_dim), empty, empty
        x, w, b, s = (torch.cat(column) for column in zip(*parts, strict=True))
        return x, w, b, s

    def posterior(
        self, data: Mapping[str, Tensor], mask: Masks | None = None
    ) -> tuple[Tensor, Tensor]:  # shapes: (B, L), (B, L, L)
        """
        Mean and full covariance of p(z | x_O), by adding precisions; the prior where nothing is observed.

        :param data: values, shape (B, D_m) per modality.
        :param mask: what is observed; ``None`` means everything.
        """
        locs, covs = [], []
        for row in range(batch_size(data)):
            x, w, b, s = self._observed(data, mask, row)
            cov = torch.linalg.inv(torch.diag(self.prior[1] ** -2) + w.T @ torch.diag(s**-2) @ w)
            covs.append(cov)
            locs.append(cov @ (self.prior[0] / self.prior[1] ** 2 + w.T @ ((x - b) / s**2)))
        return torch.stack(locs), torch.stack(covs)

    def log_evidence(self, data: Mapping[str, Tensor], mask: Masks | None = None) -> Tensor:  # shape: (B,)
        """log p(x_O) in nats, from the marginal covariance W diag(sigma_0^2) W^T + diag(s^2); 0 for an empty O."""
        values = []
        for row in range(batch_size(data)):
            x, w, b, s = self._observed(data, mask, row)
            cov = w @ torch.diag(self.prior[1] ** 2) @ w.T + torch.diag(s**2)
            values.append(normal_log_density(x, w @ self.prior[0] + b, cov))
        return torch.stack(values)

    def conditional_log_evidence(
        self, data: Mapping[str, Tensor], target_mask: Masks, given_mask: Masks
    ) -> Tensor:  # shape: (B,)
        """log p(x_A | x_S) in nats by the quotient rule; entries in both sets are known, hence not scored again."""
        union = {}
        for name, weight in self.weights.items():
            rows = range(batch_size(data))
            size = weight.shape[0]
            union[name] = torch.stack(
                [features(target_mask, name, n, size) | features(given_mask, name, n, size) for n in rows]
            )
        return self.log_evidence(data, union) - self.log_evidence(data, given_mask)

    def log_likelihoods(
        self,
        z: Tensor,  # shape: (*sample, B, L)
        data: Mapping[str, Tensor],
        mask: Masks | None = None,
    ) -> dict[str, Tensor]:  # shapes: (*sample, B)
        """log p(x_m | z) of each modality in nats, summed over its counted features, at given latents."""
        result = {}
        for name, weight in self.weights.items():
            keep = torch.stack([features(mask, name, n, weight.shape[0]) for n in range(z.shape[-2])])
            if not keep.any():
                result[name] = z.new_zeros(z.shape[:-1])
                continue
            x = torch.where(keep, data[name].double(), 0.0)
            unit = (x - z @ weight.T - self.bias[name]) / self.noise[name]
            density = -0.5 * unit**2 - self.noise[name].log() - 0.5 * math.log(2 * math.pi)
            result[name] = torch.where(keep, density, 0.0).sum(-1)
        return result

    def log_prior(self, z: Tensor) -> Tensor:  # shapes: (*sample, B, L) -> (*sample, B)
        """log p(z) in nats."""
        unit = (z - self.prior[0]) / self.prior[1]
        return (-0.5 * unit**2 - self.prior[1].log() - 0.5 * math.log(2 * math.pi)).sum(-1)

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Draws of z, shape (n, L), and of every modality, shapes (n, D_m)."""
        z = self.prior[0] + self.prior[1] * torch.randn(n, self.latent_dim, generator=generator, dtype=torch.float64)
        data = {}
        for name, weight in self.weights.items():
            unit = torch.randn(n, weight.shape[0], generator=generator, dtype=torch.float64)
            data[name] = (z @ weight.T + self.bias[name] + self.noise[name] * unit).detach()
        return z, data

    def expert(self, name: str, shift: float = 0.0, stretch: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """
        The exact p(z | x_m) as a linear encoder, made wrong on purpose: loc = A x + c + shift, scale = stretch * sd.

        Only the diagonal of the covariance is kept, so for L > 1 even shift 0, stretch 1 is an approximation.

        :return: A, shape (L, D_m); c + shift, shape (L,); scale, shape (L,).
        """
        w, b, s = self.weights[name], self.bias[name], self.noise[name]
        cov = torch.linalg.inv(torch.diag(self.prior[1] ** -2) + w.T @ torch.diag(s**-2) @ w)
        matrix = cov @ w.T @ torch.diag(s**-2)
        offset = cov @ (self.prior[0] / self.prior[1] ** 2) - matrix @ b
        return matrix, offset + shift, stretch * cov.diagonal().sqrt()

    def experts(self, data: Mapping[str, Tensor], shift: float = 0.0, stretch: float = 1.0) -> dict[str, Gaussian]:
        """Every :meth:`expert` applied to data: loc and scale, shapes (B, L); meaningless in unobserved rows."""
        result = {}
        for name in self.modalities:
            matrix, offset, scale = self.expert(name, shift, stretch)
            loc = data[name].double() @ matrix.T + offset
            result[name] = (loc, scale.expand(loc.shape))
        return result


def batch_size(data: Mapping[str, Tensor]) -> int:
    """
    Number of rows of a non-empty ``data``.

    Example::

        >>> batch_size({"a": torch.zeros(3, 2)})
        3
    """
    return next(iter(data.values())).shape[0]


def random_model(dims: Mapping[str, int], latent_dim: int, seed: int = 0) -> LinearGaussian:
    """
    A model with no special values: no zero, no one, no equal scales, a prior away from N(0, 1).

    Example::

        >>> random_model({"a": 2, "b": 3}, latent_dim=2).weights["b"].shape
        torch.Size([3, 2])
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return LinearGaussian(
        weights={m: normal(d, latent_dim) for m, d in dims.items()},
        bias={m: normal(d) for m, d in dims.items()},
        noise={m: 0.6 + 0.7 * normal(d).sigmoid() for m, d in dims.items()},
        prior_loc=0.5 * normal(latent_dim),
        prior_scale=0.7 + 0.8 * normal(latent_dim).sigmoid(),
    )
