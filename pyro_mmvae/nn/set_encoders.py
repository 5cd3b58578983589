"""Encoders of sets of modalities: features of each, pooled over what is shown; the sum.

Layer: nn.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_mmvae.distributions import Mixture, unwrap
from pyro_mmvae.nn.config import Configurable
from pyro_mmvae.nn.covariates import Columns, arguments_of, beside, picked, read_context, set_context
from pyro_mmvae.nn.encoders import _dtype, _masked, takes_mask
from pyro_mmvae.nn.heads import NormalHead
from pyro_mmvae.nn.mlp import event_size, flatten_event, mlp, positive_int
from pyro_mmvae.nn.named import NamedModules

__all__ = ["ExpertFeatures", "SetEncoder", "SumPoolingEncoder"]

Shapes = Mapping[str, int | Sequence[int]]


class _Features(nn.Module):
    """The default network g_m: an MLP of the flattened event; class numbers become one-hot vectors first."""

    def __init__(
        self, shape: torch.Size, widths: Sequence[int], num_classes: int | None, mask: bool, extra: int
    ) -> None:
        super().__init__()
        self.event_shape, self.num_classes, self.mask = shape, num_classes, mask
        each = (2 if mask else 1) if num_classes is None else positive_int(num_classes, "num_classes")
        self.net = mlp(prod(shape) * each + extra, widths)

    def forward(
        self,
        x: Tensor,  # shape: (B, *event), filled
        mask: Tensor,  # shape: (B, *event), bool
        context: Tensor | None,  # shape: (B, extra)
    ) -> Tensor:  # shape: (B, F)
        flat = flatten_event(x, self.event_shape, "set encoder")
        seen = flatten_event(mask, self.event_shape, "set encoder") if self.mask else None
        if self.num_classes is not None:
            every = torch.arange(self.num_classes, device=flat.device)
            classes = (flat.long().unsqueeze(-1) == every).to(_dtype(self))  # one-hot, in a form that can be recorded
            classes = classes if seen is None else _masked(classes, seen.unsqueeze(-1))[0]
            return self.net(beside(classes.flatten(-2), context))
        flat = flat.to(_dtype(self))
        return self.net(beside(flat if seen is None else torch.cat(_masked(flat, seen), -1), context))


class ExpertFeatures(Configurable, nn.Module):
    r"""
    A feature network from an encoder of one modality: :math:`\mathrm{relu}(W [\mathrm{loc}, \log \mathrm{scale}] + b)`.

    Example::

        >>> from pyro_mmvae.nn import MLPEncoder
        >>> ExpertFeatures(MLPEncoder(4, 2), 2, 8)(torch.zeros(5, 4)).shape
        torch.Size([5, 8])

    :param encoder: module whose call returns a location-scale Distribution with event shape ``(latent_dim,)``; its
        covariates are passed on.
    :param latent_dim: see above.
    :param width: number of features.
    """

    def __init__(self, encoder: nn.Module, latent_dim: int, width: int) -> None:
        super().__init__()
        self.encoder, self.net = encoder, nn.Linear(2 * latent_dim, width)
        self._with_mask = takes_mask(encoder)
        names = arguments_of(encoder)
        self.covariates, self.required_covariates = tuple(names), tuple(n for n, needed in names.items() if needed)

    def forward(
        self,
        x: Tensor,  # shape: (B, *event), filled
        mask: Tensor | None = None,  # shape: (B, *event), bool
        **covariates: Tensor,  # each shape: (B, ...)
    ) -> Tensor:  # shape: (B, width)
        own = {"mask": mask, **covariates} if self._with_mask else covariates
        expert: Any = unwrap(self.encoder(x, **own))
        return torch.relu(self.net(torch.cat([expert.loc, expert.scale.log()], -1)))


class _MixtureHead(nn.Module):
    """K diagonal Gaussians with weights of their own, all functions of h."""

    def __init__(self, features: int, latent_dim: int, num_components: int) -> None:
        super().__init__()
        self.sizes = num_components, latent_dim
        self.normal = NormalHead(features, num_components * latent_dim)
        self.logits = nn.Linear(features, num_components)

    def forward(
        self,
        h: Tensor,  # shape: (*batch, F)
    ) -> Mixture:  # batch_shape: batch, event_shape: (latent_dim,)
        flat: Any = self.normal(h).base_dist
        loc, scale = (p.unflatten(-1, self.sizes).movedim(-2, 0) for p in (flat.loc, flat.scale))
        return Mixture(dist.Normal(loc, scale).to_event(1), self.logits(h).log_softmax(-1).movedim(-1, 0))


class SetEncoder(nn.Module, ABC):
    r"""
    Posterior of any set S of modalities from what is common to a set: the subclass says how it is pooled.

    .. math:: q(z \mid x_S) = \mathrm{head}\bigl(\rho(\mathrm{pool}(\{ W_m\, g_m(x_m) + e_m : m \in S \}))\bigr)

    The features :math:`W_m g_m(x_m) + e_m` are computed once, :meth:`features`, and pooled for as many sets as wanted,
    :meth:`head`. The parameters of a modality follow its name, so the order of modalities is free, and the learned
    :math:`e_m` tells a modality from the others, and from nothing.

    :param shapes: event shape of each modality; their order is that of the mask.
    :param latent_dim: width of the latent.
    :param hidden: hidden layers of :math:`\rho`.
    :param features: widths of each :math:`g_m`; the last one is the width F of all features.
    :param num_components: K of a Gaussian mixture with learned weights; 1: a diagonal Gaussian.
    :param num_classes: for modalities of class numbers, how many classes.
    :param networks: own :math:`g_m`, (B, \*event) -> (B, F), in place of the default ones; one whose ``forward`` has an
        argument ``mask`` is given the mask of its features, (B, \*event), beside them. Further ones are covariates.
    :param mask: whether the default networks see which features are observed.
    :param context: columns of the covariates c that the default networks read, :math:`g_m(x_m, c)`.
    :ivar covariates: names of all covariates that are read, from the data.
    :raises ValueError: for empty ``shapes`` or ``features``, and names that are not modalities.
    """

    def __init__(
        self,
        shapes: Shapes,
        latent_dim: int,
        *,
        hidden: Sequence[int],
        features: Sequence[int],
        num_components: int,
        num_classes: Mapping[str, int] | None,
        networks: Mapping[str, nn.Module] | None,
        mask: bool,
        context: Columns,
    ) -> None:
        super().__init__()
        self.shapes = {name: event_size(shape, f"shapes[{name!r}]") for name, shape in shapes.items()}
        classes = {} if num_classes is None else dict(num_classes)
        own = {} if networks is None else dict(networks)
        unknown = sorted((set(classes) | set(own)) - set(self.shapes))
        if not self.shapes or not len(features) or unknown:
            raise ValueError(
                f"{type(self).__name__}: shapes {list(self.shapes)} and features {list(features)} must not be empty, "
                f"and num_classes and networks must name modalities; unknown: {unknown}."
            )
        self.width, self.latent_dim = positive_int(features[-1], "every width in features"), latent_dim
        self.context, self.covariates, self.required_covariates = set_context(context, self.shapes, own)
        extra = 0 if self.context is None else self.context.width
        self.networks = NamedModules(
            {
                n: own[n] if n in own else _Features(s, features, classes.get(n), mask, extra)
                for n, s in self.shapes.items()
            }
        )
        self._own = {n: arguments_of(g) for n, g in own.items()}
        self.maps = NamedModules({name: nn.Linear(self.width, self.width) for name in self.shapes})
        self._with_mask = {n: takes_mask(g) for n, g in self.networks.items()}
        self.net = mlp(self.width, hidden)
        size = hidden[-1] if len(hidden) else self.width
        several = positive_int(num_components, "num_components") > 1
        self.expert = _MixtureHead(size, latent_dim, num_components) if several else NormalHead(size, latent_dim)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names, in the order of the mask."""
        return tuple(self.shapes)

    def features(
        self,
        data: Mapping[str, Tensor],  # shapes: (B, *event), filled, covariates (B, ...)
        obs_mask: Mapping[str, Tensor] | None = None,  # shapes: (B,) or (B, *event or ones), bool
    ) -> Tensor:  # shape: (B, M, F)
        """
        Features of every modality, on all rows; zeros for those that are absent or None.

        :param obs_mask: masks of features, for the networks that look at them; None: everything is observed.
        :raises ValueError: if no modality is given, a covariate is missing, or a network returns another width than F.
        """
        given = {name: x for name in self.shapes if (x := data.get(name)) is not None}
        if not given:
            kind = type(self).__name__
            raise ValueError(f"{kind}: none of {list(self.shapes)} is in the data, which has {list(data)}.")
        masks = {} if obs_mask is None else obs_mask
        context = read_context(self.context, data, type(self).__name__, _dtype(self))
        more = {name: self._further(name, data, context) for name in given}
        out = {name: self.maps[name](self._network(name, x, masks.get(name), more[name])) for name, x in given.items()}
        zero = torch.zeros_like(next(iter(out.values())))
        return torch.stack([out.get(name, zero) for name in self.shapes], -2)

    def _further(self, name: str, data: Mapping[str, Tensor], context: Tensor | None) -> dict[str, Any]:
        """What the network of a modality reads beside it."""
        own = self._own.get(name)
        return {"context": context} if own is None else picked(own, data, f"the feature network of {name!r}")

    def _network(self, name: str, x: Tensor, mask: Tensor | None, more: Mapping[str, Any]) -> Tensor:  # shape: (B, F)
        if self._with_mask[name]:
            mask = x.new_ones((len(x),), dtype=torch.bool) if mask is None else mask
            mask = mask.reshape(mask.shape + (1,) * (x.dim() - mask.dim())).expand(x.shape)
            h = self.networks[name](x, mask=mask, **more)
        else:
            h = self.networks[name](x, **more)
        if h.shape != (len(x), self.width):
            raise ValueError(f"{name}: expected features of shape {(len(x), self.width)}, got {tuple(h.shape)}.")
        return h

    def head(
        self,
        features: Tensor,  # shape: (B, M, F)
        mask: Tensor,  # shape: (*lead, B, M), bool, True = in the set
    ) -> TorchDistribution:  # batch_shape: (*lead, B), event_shape: (latent_dim,)
        """
        The posterior given the sets in ``mask``; finite, with no meaning, for the empty set.

        :raises ValueError: if the last dimension of the mask is not M.
        """
        if mask.shape[-1] != len(self.shapes):
            kind, count = type(self).__name__, len(self.shapes)
            raise ValueError(f"{kind}: expected a mask (*lead, B, {count}), got {tuple(mask.shape)}.")
        shown = torch.where(mask.unsqueeze(-1), features, torch.zeros_like(features))
        return self.expert(self.net(self.pool(shown, mask)))

    @abstractmethod
    def pool(
        self,
        shown: Tensor,  # shape: (*batch, M, F), zero outside the set
        mask: Tensor,  # shape: (*batch, M), bool
    ) -> Tensor:  # shape: (*batch, F)
        """What is common to the shown features."""

    def forward(
        self,
        data: Mapping[str, Tensor],  # shapes: (B, *event), filled
        mask: Tensor,  # shape: (*lead, B, M), bool
    ) -> TorchDistribution:  # batch_shape: (*lead, B), event_shape: (latent_dim,)
        return self.head(self.features(data), mask)


class SumPoolingEncoder(Configurable, SetEncoder):
    r"""
    Posterior of any set of modalities by a sum over the set [1, section 4; 2].

    .. math:: q(z \mid x_S) = \mathrm{head}\Bigl(\rho\Bigl(\sum_m 1_{m \in S}\, \chi_m(g_m(x_m))\Bigr)\Bigr), \qquad
        \chi_m(h) = W_m h + e_m

    Laws: the order of modalities does not matter; what is outside the set never matters.

    Example::

        >>> enc = SumPoolingEncoder({"image": (4, 8), "label": ()}, 3, num_classes={"label": 10})
        >>> data = {"image": torch.zeros(5, 4, 8), "label": torch.zeros(5, dtype=torch.long)}
        >>> features = enc.features(data)
        >>> features.shape, enc.head(features, torch.ones(7, 5, 2, dtype=torch.bool)).batch_shape
        (torch.Size([5, 2, 256]), torch.Size([7, 5]))

    See :class:`SetEncoder` for the parameters.

    [1] *Learning multi-modal generative models with permutation-invariant encoders and tighter variational objectives*,
    Hirt, Campolo, Leong and Ortega, TMLR 2024, arXiv:2309.00380.
    [2] *Deep Sets*, Zaheer et al., NeurIPS 2017, arXiv:1703.06114.
    """

    def __init__(
        self,
        shapes: Shapes,
        latent_dim: int,
        *,
        hidden: Sequence[int] = (256, 256),
        features: Sequence[int] = (256,),
        num_components: int = 1,
        num_classes: Mapping[str, int] | None = None,
        networks: Mapping[str, nn.Module] | None = None,
        mask: bool = False,
        context: Columns = None,
    ) -> None:
        super().__init__(
            shapes,
            latent_dim,
            hidden=hidden,
            features=features,
            num_components=num_components,
            num_classes=num_classes,
            networks=networks,
            mask=mask,
            context=context,
        )

    def pool(self, shown: Tensor, mask: Tensor) -> Tensor:  # shape: (*batch, F)
        return shown.sum(-2)
