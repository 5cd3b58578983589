"""Data from a linear-Gaussian story, and all of its posteriors and likelihoods in closed form.
Layer: datasets."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyro_mmvae.datasets import _checks
from pyro_mmvae.datasets.multimodal import MultimodalDataset

__all__ = ["LinearGaussian", "linear_gaussian"]

Values = Mapping[str, Tensor | None]


@dataclass(frozen=True, eq=False)
class LinearGaussian:
    r"""
    The linear-Gaussian story, with everything that is asked of a model in closed form for any mask.

    .. math:: z \sim N(0, I), \qquad x_m = W_m z + b_m + s_m \epsilon_m, \quad \epsilon_m \sim N(0, I)

    With O the observed features of a row, :math:`P = I + W_O^\top S_O^{-2} W_O` and
    :math:`h = W_O^\top S_O^{-2} (x_O - b_O)`:

    .. math:: p(z \mid x_O) = N(P^{-1} h, P^{-1}), \qquad
        \log p(x_O) = \log N(x_O; b_O, S_O^2) - \tfrac12 \log |P| + \tfrac12 h^\top P^{-1} h

    Results have the dtype of the weights. What lies under the mask does not matter, NaN included.

    Example::

        >>> truth = linear_gaussian(100).truth
        >>> nothing = torch.zeros(5, dtype=torch.bool)
        >>> data = {"x1": torch.randn(5, 3), "x2": torch.randn(5, 3)}
        >>> truth.log_likelihood(data, {"x1": nothing, "x2": nothing}).tolist()
        [0.0, 0.0, 0.0, 0.0, 0.0]

    :param weights: W, modality name to (F, D).
    :param bias: b, name to (F,).
    :param noise: s, name to a standard deviation > 0, a float or (F,).
    """

    weights: Mapping[str, Tensor]
    bias: Mapping[str, Tensor]
    noise: Mapping[str, float | Tensor]

    @property
    def latent_dim(self) -> int:
        """Size D of the latent."""
        return next(iter(self.weights.values())).shape[-1]

    def posterior(
        self, data: Values, obs_mask: Mapping[str, Tensor | None] | None = None
    ) -> MultivariateNormal:  # batch_shape: (B,), event_shape: (D,)
        """
        The exact p(z | x_O); the prior where nothing is observed.

        :param data: modality name to (B, F); an absent or None modality is missing for all rows.
        :param obs_mask: name to bool (B,) or (B, F), True = observed; absent, or None: all observed.
        :raises ValueError: for an unknown name, a wrong shape, or an observed value that is not finite.
        """
        value, scale, mask = self._stack(data, obs_mask)
        loc, precision = self._posterior(value / scale, scale, mask)
        return MultivariateNormal(loc, precision_matrix=precision)

    def log_likelihood(
        self, data: Values, obs_mask: Mapping[str, Tensor | None] | None = None
    ) -> Tensor:  # shape: (B,), nats
        """The exact log p(x_O) of each row; 0 where nothing is observed. Arguments and errors as :meth:`posterior`."""
        value, scale, mask = self._stack(data, obs_mask)
        standard = value / scale
        loc, precision = self._posterior(standard, scale, mask)
        weights = torch.cat(list(self.weights.values())) / scale.unsqueeze(-1)
        fitted = (standard * (loc @ weights.mT)).sum(-1)  # h^T P^-1 h
        density = -0.5 * standard**2 - (scale.log() + 0.5 * math.log(2 * math.pi)) * mask
        return density.sum(-1) - 0.5 * torch.logdet(precision) + 0.5 * fitted

    def conditional_log_likelihood(
        self,
        data: Values,
        obs_mask: Mapping[str, Tensor | None] | None = None,
        *,
        target: Collection[str],
        given: Collection[str] | None = None,
    ) -> Tensor:  # shape: (B,), nats
        r"""
        The exact log p(x_target | x_given) of each row, over what is observed of both; 0 where the target is missing.

        .. math:: \log p(x_T \mid x_S) = \log p(x_{T \cup S}) - \log p(x_S)

        :param target: names of the modalities to be scored.
        :param given: names to condition on; the default is all others.
        :raises ValueError: for an unknown name, or one in both.
        """
        scored = self._names("target", target)
        known = set(self.weights) - scored if given is None else self._names("given", given)
        if scored & known:
            raise ValueError(f"{sorted(scored & known)}: both target and given. Fix: take them out of one of the two.")
        joint = self.log_likelihood({name: data.get(name) for name in scored | known}, obs_mask)
        if not any(data.get(name) is not None for name in known):
            return joint
        return joint - self.log_likelihood({name: data.get(name) for name in known}, obs_mask)

    def _posterior(
        self,
        standard: Tensor,  # shape: (B, F), (x - b) / s, 0 where not observed
        scale: Tensor,  # shape: (F,)
        mask: Tensor,  # shape: (B, F)
    ) -> tuple[Tensor, Tensor]:  # shapes: (B, D), (B, D, D)
        weights = torch.cat(list(self.weights.values())) / scale.unsqueeze(-1)
        eye = torch.eye(self.latent_dim, dtype=weights.dtype, device=weights.device)
        precision = eye + torch.einsum("bf,fd,fe->bde", mask.to(weights.dtype), weights, weights)
        loc = torch.linalg.solve(precision, (standard @ weights).unsqueeze(-1)).squeeze(-1)
        return loc, precision

    def _stack(
        self, data: Values, obs_mask: Mapping[str, Tensor | None] | None
    ) -> tuple[Tensor, Tensor, Tensor]:  # shapes: (B, F), (F,), (B, F)
        """Centered values with 0 where nothing is observed, noise scales and masks of all features in a row."""
        self._names("data", data)
        masks = _checks.check_mask_keys(obs_mask, tuple(self.weights), ())
        present = {name: _checks.as_tensor(name, value) for name, value in data.items() if value is not None}
        if not present:
            raise ValueError(f"data: no modality is given. Known: {', '.join(self.weights)}.")
        n = _checks.check_rows(present)
        values, scales, observed = [], [], []
        for name, weight in self.weights.items():
            value = present.get(name, weight.new_zeros(n, len(weight))).to(weight)
            if value.shape != (n, len(weight)):
                raise ValueError(f"{name!r}: expected shape {(n, len(weight))}, got {tuple(value.shape)}.")
            mask = torch.zeros_like(value, dtype=torch.bool)
            if name in present:
                mask = _observed(name, value, masks.get(name))
            values.append(torch.where(mask, value - self.bias[name], 0.0))
            scales.append(torch.as_tensor(self.noise[name]).to(weight).expand(len(weight)))
            observed.append(mask)
        return torch.cat(values, -1), torch.cat(scales), torch.cat(observed, -1)

    def _names(self, argument: str, names: Collection[str]) -> set[str]:
        if isinstance(names, str):
            raise TypeError(
                f"{argument}: expected a collection of names, got the string {names!r}. Fix: {{{names!r}}}."
            )
        unknown = sorted(set(names) - set(self.weights))
        if unknown:
            raise ValueError(f"{argument}: {unknown} is no modality here. Known: {', '.join(self.weights)}.")
        return set(names)


def _observed(name: str, value: Tensor, obs_mask: Tensor | None) -> Tensor:  # shape: (B, F), bool
    mask = torch.ones_like(value, dtype=torch.bool)
    if obs_mask is not None:
        mask = _checks.cells(_checks.check_mask(name, obs_mask, value), value)
    bad = mask & ~torch.isfinite(value)
    if bad.any():
        raise ValueError(
            f"{name!r}: row {_checks.first_row(bad)} is observed and not finite. Fix: obs_mask False there."
        )
    return mask


def linear_gaussian(
    n: int = 1000,
    modalities: int | Mapping[str, int] = 2,
    latent_dim: int = 2,
    noise: float = 0.5,
    seed: int = 0,
) -> MultimodalDataset:
    r"""
    A complete dataset from a linear-Gaussian story whose weights are drawn too; ``ds.truth`` has the closed forms.

    .. math:: z \sim N(0, I), \qquad x_m = W_m z + b_m + noise \cdot \epsilon_m, \qquad W, b \sim N(0, 1)

    Values have torch's default dtype, the truth is in float64. ``labels`` holds the z of each row.

    Example::

        >>> ds = linear_gaussian(100, {"a": 3, "b": 4}, latent_dim=2)
        >>> ds.truth.posterior(ds.data, ds.obs_mask).mean.shape
        torch.Size([100, 2])
        >>> gap = ds.truth.log_likelihood(ds.data) - ds.truth.conditional_log_likelihood(ds.data, target={"a"})
        >>> torch.allclose(gap, ds.truth.log_likelihood({"b": ds.data["b"]}))
        True

    :param n: number of rows.
    :param modalities: name to number of features; or a number M of modalities ``x1`` to ``xM`` of 3 features each.
    :param noise: standard deviation of the noise, the same for all features.
    :raises ValueError: if a size is below 1 or the noise is not positive.
    """
    if isinstance(modalities, int):
        modalities = {f"x{i + 1}": 3 for i in range(modalities)}
    if not modalities or min(n, latent_dim, *modalities.values()) < 1:
        raise ValueError(f"sizes are at least 1, got n={n}, modalities={dict(modalities)}, latent_dim={latent_dim}.")
    if not noise > 0:
        raise ValueError(f"noise: expected a standard deviation > 0, got {noise}.")
    rng = _checks.generator(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64, device="cpu")

    weights = {name: normal(size, latent_dim) for name, size in modalities.items()}
    bias = {name: normal(size) for name, size in modalities.items()}
    z = normal(n, latent_dim)
    data = {m: z @ w.mT + bias[m] + noise * normal(n, len(w)) for m, w in weights.items()}
    dtype = torch.get_default_dtype()
    ds = MultimodalDataset({m: x.to(dtype) for m, x in data.items()}, labels=z.to(dtype))
    ds.truth = LinearGaussian(weights, bias, dict.fromkeys(modalities, float(noise)))
    return ds
