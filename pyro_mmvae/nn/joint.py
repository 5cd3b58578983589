"""One encoder of all modalities, for any subset of them.

Layer: nn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_mmvae.nn.config import Configurable
from pyro_mmvae.nn.covariates import Columns, arguments_of, beside, picked, read_context, set_context
from pyro_mmvae.nn.encoders import _dtype
from pyro_mmvae.nn.heads import Family, make_head
from pyro_mmvae.nn.mlp import event_size, flatten_event, mlp, positive_int
from pyro_mmvae.nn.named import NamedModules

__all__ = ["JointEncoder"]


class _Features(nn.Module):
    """Features of one modality; class numbers become one-hot vectors first."""

    def __init__(
        self, shape: torch.Size, widths: Sequence[int], num_classes: int | None, dropout: float, extra: int
    ) -> None:
        super().__init__()
        self.event_shape, self.num_classes = shape, num_classes
        size = prod(shape) * (1 if num_classes is None else positive_int(num_classes, "num_classes"))
        self.net = mlp(size + extra, widths, dropout=dropout)

    def forward(
        self,
        x: Tensor,  # shape: (B, *event)
        context: Tensor | None,  # shape: (B, extra)
    ) -> Tensor:  # shape: (B, F)
        flat = flatten_event(x, self.event_shape, "JointEncoder")
        if self.num_classes is not None:
            classes = torch.arange(self.num_classes, device=flat.device)
            flat = (flat.long().unsqueeze(-1) == classes).flatten(-2)  # one-hot, in a form that can be recorded
        return self.net(beside(flat.to(_dtype(self)), context))


class JointEncoder(Configurable, nn.Module):
    r"""
    Posterior of any subset of modalities by one masked network.

    .. math:: q(z \mid x_S) = \mathrm{head}\big(\mathrm{mlp}([1_{m \in S}\, f_m(x_m)]_m, [1_{m \in S}]_m)\big)

    The features are computed once, :meth:`features`, and the head for as many subsets as wanted, :meth:`head`: a mask
    (J, B, M) gives a distribution of batch shape (J, B). The features of a modality outside the subset are set to zero,
    so its values never matter. With covariates c they are :math:`f_m(x_m, c)`; these are in the data, by name. With
    nothing observed it still answers, with a learned distribution; the guides put the prior there.

    Example::

        >>> enc = JointEncoder({"image": (4, 8), "label": ()}, 3, num_classes={"label": 10})
        >>> data = {"image": torch.zeros(5, 4, 8), "label": torch.zeros(5, dtype=torch.long)}
        >>> features = enc.features(data)
        >>> features.shape, enc.head(features, torch.ones(7, 5, 2, dtype=torch.bool)).batch_shape
        (torch.Size([5, 2, 256]), torch.Size([7, 5]))

    :param shapes: event shape of each modality; their order is the order of the mask.
    :param latent_dim: width of the latent.
    :param hidden: hidden layers after the features are put together.
    :param features: widths of the feature network of each modality; all have the last one as output.
    :param family: as in :class:`~pyro_mmvae.nn.MLPEncoder`.
    :param num_classes: for modalities of class numbers, how many classes.
    :param networks: own feature networks, (B, \*event) -> (B, features[-1]), in place of the default ones; further
        arguments are covariates.
    :param context: columns of the covariates that the default feature networks read.
    :ivar covariates: names of all covariates that are read.
    :raises ValueError: for empty ``shapes``, names that are not modalities, or features of another width.
    """

    def __init__(
        self,
        shapes: Mapping[str, int | Sequence[int]],
        latent_dim: int,
        *,
        hidden: Sequence[int] = (256, 256),
        features: Sequence[int] = (256,),
        family: Family = "normal",
        dropout: float = 0.0,
        num_classes: Mapping[str, int] | None = None,
        networks: Mapping[str, nn.Module] | None = None,
        context: Columns = None,
    ) -> None:
        super().__init__()
        self.shapes = {name: event_size(shape, f"shapes[{name!r}]") for name, shape in shapes.items()}
        classes = {} if num_classes is None else dict(num_classes)
        own = {} if networks is None else dict(networks)
        unknown = sorted((set(classes) | set(own)) - set(self.shapes))
        if not self.shapes or not len(features) or unknown:
            raise ValueError(
                f"JointEncoder: shapes {list(self.shapes)} and features {list(features)} must not be empty, and "
                f"num_classes and networks must name modalities; unknown: {unknown}."
            )
        self.width, self.latent_dim = positive_int(features[-1], "every width in features"), latent_dim
        self.context, self.covariates, self.required_covariates = set_context(context, self.shapes, own)
        extra = 0 if self.context is None else self.context.width
        self.networks = NamedModules(
            {
                n: own[n] if n in own else _Features(s, features, classes.get(n), dropout, extra)
                for n, s in self.shapes.items()
            }
        )
        self._own = {n: arguments_of(g) for n, g in own.items()}
        inputs = len(self.shapes) * (self.width + 1)
        self.net = mlp(inputs, hidden, dropout=dropout)
        self.expert = make_head(family, hidden[-1] if len(hidden) else inputs, latent_dim)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names, in the order of the mask."""
        return tuple(self.shapes)

    def features(
        self,
        data: Mapping[str, Tensor],  # shapes: (B, *event), filled, covariates (B, ...)
    ) -> Tensor:  # shape: (B, M, F)
        """
        Features of every modality; zeros for those that are absent or None.

        :raises ValueError: if no modality is given, a covariate is missing, or a network returns another width than F.
        """
        given = {name: x for name in self.shapes if (x := data.get(name)) is not None}
        if not given:
            raise ValueError(f"JointEncoder: none of {list(self.shapes)} is in the data, which has {list(data)}.")
        out, context = {}, read_context(self.context, data, "JointEncoder", _dtype(self))
        for name, x in given.items():
            if name in self._own:
                own = picked(self._own[name], data, f"the feature network of {name!r}")
                out[name] = self.networks[name](x, **own)
            else:
                out[name] = self.networks[name](x, context)
            if out[name].shape != (len(x), self.width):
                raise ValueError(
                    f"{name}: expected features of shape {(len(x), self.width)}, got {tuple(out[name].shape)}."
                )
        zero = torch.zeros_like(next(iter(out.values())))
        return torch.stack([out.get(name, zero) for name in self.shapes], -2)

    def head(
        self,
        features: Tensor,  # shape: (B, M, F)
        mask: Tensor,  # shape: (*lead, B, M), bool, True = in the subset
    ) -> TorchDistribution:  # batch_shape: (*lead, B), event_shape: (latent_dim,)
        """The posterior given the subsets in ``mask``."""
        if mask.shape[-1] != len(self.shapes):
            raise ValueError(f"JointEncoder: expected a mask (*lead, B, {len(self.shapes)}), got {tuple(mask.shape)}.")
        kept = torch.where(mask.unsqueeze(-1), features, torch.zeros_like(features))
        return self.expert(self.net(torch.cat([kept.flatten(-2), mask.to(kept.dtype)], -1)))

    def forward(
        self,
        data: Mapping[str, Tensor],  # shapes: (B, *event), filled
        mask: Tensor,  # shape: (*lead, B, M), bool
    ) -> TorchDistribution:  # batch_shape: (*lead, B), event_shape: (latent_dim,)
        return self.head(self.features(data), mask)
