"""Ready-made problems: a random model, one row for every set of observed modalities, wrong experts, NaN where hidden.

Test layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .linear_gaussian import Gaussian, LinearGaussian, random_model
from .products import nonempty_subsets

DIMS = {"a": 2, "b": 3, "c": 1}  # features of the modalities; the first M of them are used


@dataclass(frozen=True)
class Case:
    """
    A model with data, masks and experts; row n observes ``sets[n]``. Everything hidden is NaN, in the experts too.

    ``complete`` is the same data with nothing hidden.
    """

    model: LinearGaussian
    data: dict[str, Tensor]  # shapes: (B, D_m)
    obs_mask: dict[str, Tensor]  # shapes: (B,) or (B, D_m), bool
    experts: dict[str, Gaussian]  # shapes: (B, L)
    complete: dict[str, Tensor]  # shapes: (B, D_m)
    sets: tuple[tuple[str, ...], ...]


def make_case(
    num_modalities: int,
    latent_dim: int = 1,
    *,
    per_feature: bool = False,
    seed: int = 0,
    shift: float = 0.5,
    stretch: float = 1.5,
) -> Case:
    """
    All 2^M sets of observed modalities, the empty one first, under a random model.

    Example::

        >>> case = make_case(2)
        >>> case.sets
        ((), ('a',), ('b',), ('a', 'b'))

    :param per_feature: masks (B, D_m) that also hide features of observed modalities, never all of them.
    :param shift: added to the location of the exact p(z | x_m). :param stretch: multiplies its scale.
    """
    dims = dict(list(DIMS.items())[:num_modalities])
    model = random_model(dims, latent_dim, seed)
    sets = ((), *nonempty_subsets(dims))
    generator = torch.Generator().manual_seed(seed + 1)
    _, complete = model.sample(len(sets), generator)
    data, masks, experts = {}, {}, {}
    for name, (loc, scale) in model.experts(complete, shift, stretch).items():
        seen = torch.tensor([name in s for s in sets])
        mask = seen
        if per_feature:
            mask = seen.unsqueeze(-1) & (torch.rand(complete[name].shape, generator=generator) < 0.6)
            mask[:, 0] |= seen & ~mask.any(-1)
        keep = mask if per_feature else mask.unsqueeze(-1)
        masks[name] = mask
        data[name] = torch.where(keep, complete[name], torch.nan)
        # not equal over rows, so that a mixed-up row shows
        uneven = scale * torch.linspace(0.8, 1.2, len(sets), dtype=torch.float64).unsqueeze(-1)
        rows = seen.unsqueeze(-1)
        experts[name] = (torch.where(rows, loc, torch.nan), torch.where(rows, uneven, torch.nan))
    return Case(model, data, masks, experts, complete, sets)


def likelihood_experts(model: LinearGaussian, data: Mapping[str, Tensor]) -> dict[str, Gaussian]:  # shapes: (B, 1)
    """
    q_m proportional to p(x_m | z), for one latent dimension: with the prior their product is the exact posterior.

    Example::

        >>> case = make_case(2)
        >>> likelihood_experts(case.model, case.data)["a"][0].shape
        torch.Size([4, 1])
    """
    result = {}
    for name, weight in model.weights.items():
        w, s = weight[:, 0], model.noise[name]
        precision = (w**2 / s**2).sum()
        loc = (data[name] - model.bias[name]) @ (w / s**2) / precision
        result[name] = (loc.unsqueeze(-1), (precision**-0.5).expand(len(loc), 1))
    return result


def off_posterior(case: Case, shift: float = 0.5, stretch: float = 1.5) -> Gaussian:  # shapes: (B, L)
    """
    The exact posterior given what each row observes, its diagonal only, moved and stretched.

    Example::

        >>> off_posterior(make_case(2))[1].shape
        torch.Size([4, 1])
    """
    loc, cov = case.model.posterior(case.data, case.obs_mask)
    return loc + shift, stretch * cov.diagonal(dim1=-2, dim2=-1).sqrt()
