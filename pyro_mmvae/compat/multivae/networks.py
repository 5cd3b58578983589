"""Networks written for multivae, as encoders and decoders whose call returns a distribution.

Layer: compat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, Literal

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.nn.functional import softmax, softplus

from pyro_mmvae.distributions import Lazy
from pyro_mmvae.nn import Bernoulli, Laplace, Likelihood, Normal, OneHotCategorical

__all__ = ["Dist", "Family", "decoder", "encoder", "joint_encoder", "likelihood"]

Family = Literal["normal", "normal_softplus", "laplace_softmax"]
Dist = Literal["normal", "laplace", "bernoulli", "categorical"]

_FLOOR = 1e-6  # multivae's
_FAMILIES = ("normal", "normal_softplus", "laplace_softmax")


def encoder(net: nn.Module, *, family: Family = "normal", private: bool = False) -> nn.Module:
    r"""
    An encoder of multivae's as an encoder here.

    .. math:: \text{normal: } \mathcal{N}(\mu, e^{v}), \qquad
        \text{normal\_softplus: } \mathcal{N}(\mu, (\mathrm{softplus}(v) + 10^{-6})^2), \qquad
        \text{laplace\_softmax: } \mathrm{Laplace}(\mu, D\,\mathrm{softmax}(v) + 10^{-6})

    with :math:`\mu` the output ``embedding`` and v the output ``log_covariance``. The network is shared, not copied:
    ``encoder(net)`` and ``encoder(net, private=True)`` are two heads of one trunk, which runs once for each.

    Example::

        >>> class Net(nn.Linear):
        ...     def forward(self, x):
        ...         mean, log_covariance = super().forward(x).chunk(2, -1)
        ...         return {"embedding": mean, "log_covariance": log_covariance}
        >>> encoder(Net(3, 4))(torch.zeros(5, 3)).event_shape
        torch.Size([2])

    :param net: data ``(B, *event)`` -> mapping with ``embedding`` and ``log_covariance``, ``(B, D)`` in nats.
    :param family: "normal", "normal_softplus", or "laplace_softmax" (the mixtures of multivae by default).
    :param private: take the outputs ``style_embedding`` and ``style_log_covariance``, the private latent.
    :raises ValueError: for an unknown family; when called, if the network lacks an output.
    """
    return _Encoder(net, family, private)


def joint_encoder(net: nn.Module, modalities: Sequence[str]) -> nn.Module:
    """
    A joint encoder of multivae's, for ``JMVAE(..., joint_encoder=..., subset_posterior="product")``.

    It sees whole samples: where modalities are missing the product of the unimodal encoders answers instead.

    Example::

        >>> class Net(nn.Linear):
        ...     def forward(self, x):
        ...         mean, log_covariance = super().forward(torch.cat(list(x.values()), -1)).chunk(2, -1)
        ...         return {"embedding": mean, "log_covariance": log_covariance}
        >>> joint = joint_encoder(Net(5, 4), ("a", "b"))
        >>> joint.features({"a": torch.zeros(7, 3), "b": torch.zeros(7, 2)}).shape
        torch.Size([7, 2, 4])

    :param net: modality -> data ``(B, *event)`` -> mapping with ``embedding`` and ``log_covariance``, ``(B, D)``.
    :param modalities: names, in the order in which the model has them.
    """
    return _JointEncoder(net, tuple(modalities))


def decoder(
    net: nn.Module,
    dist: Dist = "normal",
    scale: float = 1.0,
    *,
    shape: Sequence[int] | None = None,
) -> nn.Module:
    r"""
    A decoder of multivae's with one of its likelihoods, as a decoder here: z of shape (\*batch, D) to a Distribution.

    "normal" and "laplace" of a fixed scale around the output ``reconstruction``; "bernoulli" with the output as logits;
    "categorical" over one-hot vectors along the last dimension with the output as logits.

    Example::

        >>> class Net(nn.Linear):
        ...     def forward(self, z):
        ...         return {"reconstruction": super().forward(z)}
        >>> decoder(Net(2, 3), "laplace", 0.75)(torch.zeros(4, 5, 2)).batch_shape
        torch.Size([4, 5])

    :param net: z ``(B, D)`` -> mapping with ``reconstruction``, ``(B, *event)``.
    :param dist: multivae's name of the likelihood.
    :param scale: of "normal" (standard deviation) and "laplace".
    :param shape: event shape; if it is known the network runs on the rows that are scored alone.
    :raises ValueError: for an unknown likelihood or a scale that is not positive.
    """
    return _Decoder(net, likelihood(dist, scale), None if shape is None else torch.Size(shape))


def likelihood(dist: str, scale: float = 1.0) -> Likelihood:
    """
    The likelihood of multivae's name.

    :raises ValueError: for an unknown name or a scale that is not positive.
    """
    if dist in ("normal", "laplace"):
        return (Normal if dist == "normal" else Laplace)(float(scale))
    if dist in ("bernoulli", "categorical"):
        return Bernoulli() if dist == "bernoulli" else OneHotCategorical()
    raise ValueError(f"dist: expected 'normal', 'laplace', 'bernoulli' or 'categorical', got {dist!r}.")


def _output(out: Any, name: str, net: nn.Module) -> Tensor:
    """One output of a network, with one dimension per row even where a single row was squeezed."""
    if not isinstance(out, Mapping) or name not in out:
        had = sorted(out) if isinstance(out, Mapping) else type(out).__name__
        raise ValueError(f"{type(net).__name__}: expected an output {name!r}, got {had}.")
    return out[name]


def _dtype(net: nn.Module) -> torch.dtype:
    return next((p.dtype for p in net.parameters() if p.is_floating_point()), torch.get_default_dtype())


def _expert(loc: Tensor, raw: Tensor, family: Family) -> TorchDistribution:
    if family == "laplace_softmax":
        return dist.Laplace(loc, raw.shape[-1] * softmax(raw, -1) + _FLOOR).to_event(1)
    scale = (0.5 * raw).exp() if family == "normal" else softplus(raw) + _FLOOR
    return dist.Normal(loc, scale).to_event(1)


class _Encoder(nn.Module):
    """The expert of a network with multivae's outputs."""

    def __init__(self, net: nn.Module, family: Family, private: bool) -> None:
        super().__init__()
        if family not in _FAMILIES:
            raise ValueError(f"family: expected one of {list(_FAMILIES)}, got {family!r}.")
        self.net, self.family = net, family
        self.names = ("style_embedding", "style_log_covariance") if private else ("embedding", "log_covariance")

    def forward(
        self,
        x: Tensor,  # shape: (B, *event)
    ) -> TorchDistribution:  # batch_shape: (B,), event_shape: (D,)
        out = self.net(x)
        loc, raw = (_output(out, name, self.net).reshape(len(x), -1) for name in self.names)
        return _expert(loc, raw, self.family)


class _JointEncoder(nn.Module):
    """The joint posterior of complete samples; its parameters travel as the features."""

    def __init__(self, net: nn.Module, modalities: tuple[str, ...]) -> None:
        super().__init__()
        self.net, self.modalities = net, modalities

    def features(
        self,
        data: Mapping[str, Tensor | None],  # shapes: (B, *event), filled
    ) -> Tensor:  # shape: (B, M, 2 D)
        """The posterior's parameters, the same for every modality."""
        whole = {m: x for m in self.modalities if (x := data.get(m)) is not None}
        rows = next((x for x in whole.values()), torch.empty(0))
        if len(whole) < len(self.modalities):  # no sample is whole: nothing of this is used
            return rows.new_zeros(len(rows), len(self.modalities), 2, dtype=_dtype(self.net))
        out = self.net(whole)
        parts = [_output(out, name, self.net).reshape(len(rows), -1) for name in ("embedding", "log_covariance")]
        return torch.cat(parts, -1).unsqueeze(-2).expand(-1, len(self.modalities), -1)

    def head(
        self,
        features: Tensor,  # shape: (B, M, 2 D)
        mask: Tensor,  # shape: (*lead, B, M), bool
    ) -> TorchDistribution:  # batch_shape: (*lead, B), event_shape: (D,)
        """The posterior of whole samples, whatever the mask."""
        loc, raw = features[..., 0, :].chunk(2, -1)
        return _expert(loc, raw, "normal").expand(mask.shape[:-1])


class _Decoder(nn.Module):
    """The likelihood of a network with multivae's output."""

    def __init__(self, net: nn.Module, likelihood: Likelihood, shape: torch.Size | None) -> None:
        super().__init__()
        self.net, self.likelihood, self.shape = net, likelihood, shape
        if shape is not None:
            self.likelihood.build(shape)

    def forward(
        self,
        z: Tensor,  # shape: (*batch, D)
    ) -> TorchDistribution:  # batch_shape: batch, event_shape: event
        if self.shape is None:
            return self.dense(z)
        return Lazy(self.dense, z, event_shape=self.shape, support=self.likelihood.support())

    def dense(
        self,
        z: Tensor,  # shape: (*batch, D)
    ) -> TorchDistribution:  # batch_shape: batch, event_shape: event
        """Run the network."""
        flat = z.reshape(prod(z.shape[:-1]), z.shape[-1])
        raw = _output(self.net(flat), "reconstruction", self.net)
        if self.shape is None:
            self.likelihood.build(raw.shape[1:])
        shape = self.likelihood.raw_shape()
        return self.likelihood(raw.reshape(z.shape[:-1] + shape))
