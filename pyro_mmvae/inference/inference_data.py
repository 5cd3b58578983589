"""A trained pair on data as an ArviZ object: posterior, predictions, likelihoods, weights, prior, the data itself.

Layer: inference.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_mmvae.inference._anatomy import anatomy
from pyro_mmvae.inference._batch import Batch, Masks, Values, evaluation, known_names, positive, prepared, split
from pyro_mmvae.inference._reported import Reported
from pyro_mmvae.inference._run import (
    draw_discrete,
    encode,
    log_joint,
    log_proposal,
    run_guide,
    run_model,
    site_scores,
)
from pyro_mmvae.inference.predict import followed
from pyro_mmvae.masks import ObsMask

__all__ = ["to_inference_data"]

Group = dict[str, Tensor]
PER_DRAW = ("posterior", "posterior_predictive", "log_likelihood", "sample_stats", "prior", "prior_predictive")


def to_inference_data(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Values = None,
    obs_mask: Masks = None,
    *,
    num_samples: int = 200,
    given: Collection[str] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    batch_size: int = 512,
) -> Any:
    """
    An ``arviz.InferenceData`` (ArviZ 0.x) or ``xarray.DataTree`` (1.x), which ``to_netcdf`` writes.

    =====================  ===========================================================================================
    posterior              latents from q(z | x_given), enumerated ones from their exact conditional; deterministics
    posterior_predictive   fresh draws of every modality, also where it is observed
    log_likelihood         log p(x_m | z) of each modality in nats, NaN in samples where it is missing
    sample_stats           ``log_weight``: log p(x_given, z) - log q(z | x_given) per draw and sample, for Pareto's k
    prior                  latents along the story
    prior_predictive       every modality along the story
    observed_data          the data, NaN where missing
    constant_data          the masks, ``<modality>_obs_mask``, and the covariates
    =====================  ===========================================================================================

    The prior groups are left out where a latent's prior is improper. Draws are independent: a single chain whose r-hat
    says nothing. Dimensions are ``chain, draw, sample``, then those of the event; sites outside the plate ``data`` lack
    ``sample``.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> import pyro_mmvae as mm
        >>> def story():
        ...     z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...     pyro.sample("x", dist.Normal(z, 1.0).to_event(1))
        >>> model = mm.observe(story, ("x",))
        >>> guide = mm.guides.Product(model, {"x": mm.nn.MLPEncoder(2, 2)})
        >>> idata = to_inference_data(model, guide, {"x": torch.zeros(3, 2)}, num_samples=5)
        >>> idata.posterior["z"].dims
        ('chain', 'draw', 'sample', 'z_dim')

    :param num_samples: draws per sample, S.
    :param given: modalities to condition on; default: all that is observed.
    :param coords: dimension -> labels, e.g. ``{"sample": names}``.
    :param dims: modality or latent -> names of its event dimensions; default ``<modality>_dim_0`` and on, and
        ``<latent>_dim`` for a latent vector. Plates of the story are ``<latent>_plate_0`` and on.
    :raises ValueError: for unknown names, or names of dimensions that do not fit.
    """
    positive("num_samples", num_samples)
    with evaluation(model, guide):
        batch = prepared(model, guide, data, obs_mask)
        names = known_names("given", given, batch.names)
        parts = [_groups(block, block.masks(names), num_samples) for block in split(batch, batch_size)]
        sites = parts[0][1]
        rowless = {name for name, site in sites.items() if not site.per_sample}
        groups = {
            g: {
                name: x if name in rowless else torch.cat([p[g][name] for p, _ in parts], 1)
                for name, x in parts[0][0][g].items()
            }
            for g in PER_DRAW
        }
        shown = [m for m in batch.names if m in batch.data]
        groups["observed_data"] = {m: _with_gaps(batch.data[m], batch.obs_mask[m]) for m in shown}
        masks = batch.obs_mask.door_form()
        groups["constant_data"] = {f"{m}_obs_mask": masks[m] for m in batch.names}
        groups["constant_data"].update(batch.covariates)
    return _arviz(groups, _dims(groups, sites, batch, {} if dims is None else dims), coords)


def _groups(batch: Batch, masks: ObsMask, draws: int) -> tuple[dict[str, Group], dict[str, Reported]]:
    """
    All groups with draws, for one block of rows, and the sites beside its modalities; entries have shape (S, B, ...),
    or (S, ...) for sites without rows.
    """
    look = anatomy(batch)
    shown = [m for m, rows in masks.rows.items() if bool(rows.any())]
    feeding = look.feeding(shown, batch.names)
    values, log_q = log_proposal(batch, run_guide(batch, masks, draws, encode(batch, masks)))
    log_weight = log_joint(batch, masks, values, draws, feeding=feeding) - log_q
    values = draw_discrete(batch, masks, values, draws, feeding=feeding)
    after, sites = followed(batch, masks, values, draws, batch.names)
    proper = all(site in batch.names for site in look.not_densities)
    before, earlier = followed(batch, batch.masks(()), {}, draws, batch.names) if proper else ({}, {})
    scored = run_model(batch, batch.obs_mask, values, draws, feeding=look.feeding(batch.names, batch.names))
    scores = site_scores(batch, scored, draws)
    groups = {
        "posterior": {name: site.rows_first for name, site in sites.items()},
        "posterior_predictive": after,
        "log_likelihood": {m: _gaps(scores[m], batch.obs_mask.rows[m]) for m in batch.names},
        "sample_stats": {"log_weight": log_weight},
        "prior": {name: site.rows_first for name, site in earlier.items()},
        "prior_predictive": before,
    }
    return groups, sites


def _gaps(x: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, x, torch.nan)


def _with_gaps(x: Tensor, mask: Tensor) -> Tensor:
    """NaN where missing; whole numbers stay whole where nothing is."""
    return x if bool(mask.all()) else torch.where(mask, x if x.is_floating_point() else x.double(), torch.nan)


def _dims(
    groups: Mapping[str, Group], sites: Mapping[str, Reported], batch: Batch, given: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    """Names of all dimensions but chain and draw."""
    out: dict[str, list[str]] = {"log_weight": ["sample"]}
    known = {*groups["posterior"], *batch.names}
    unknown = sorted(set(given) - known)
    if unknown:
        raise ValueError(f"dims: {unknown} are neither modalities nor latents; known are {sorted(known)}.")
    for name, site in sites.items():
        event = site.event_dim
        inner = [f"{name}_plate_{i}" for i in range(site.plates)]
        default = [f"{name}_dim"] if event == 1 else [f"{name}_dim_{i}" for i in range(event)]
        out[name] = [*(["sample"] if site.per_sample else []), *inner, *_event_names(name, event, given, default)]
    for m in batch.names:
        event = batch.obs_mask.event_dims[m]
        names = _event_names(m, event, given, [f"{m}_dim_{i}" for i in range(event)])
        out[m] = ["sample", *names]
        mask = groups["constant_data"][f"{m}_obs_mask"]
        out[f"{m}_obs_mask"] = ["sample", *names][: mask.dim()]
    for name in batch.covariates:
        out[name] = ["sample", *(f"{name}_dim_{i}" for i in range(batch.data[name].dim() - 1))]
    return out


def _event_names(name: str, event: int, given: Mapping[str, Sequence[str]], default: list[str]) -> list[str]:
    own = list(given.get(name, default))
    if len(own) != event:
        raise ValueError(f"dims[{name!r}]: expected {event} names, one per event dimension, got {own}.")
    return own


def _arviz(groups: Mapping[str, Group], dims: dict[str, list[str]], coords: Mapping[str, Sequence[Any]] | None) -> Any:
    """The groups as ArviZ's object, with one chain."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)  # ArviZ 0.x announces 1.x when it is imported
        import arviz

    arrays = {
        group: {name: (x.unsqueeze(0) if group in PER_DRAW else x).cpu().numpy() for name, x in content.items()}
        for group, content in groups.items()
    }
    size = next(iter(groups["sample_stats"].values())).shape[1]
    labels = {"sample": list(range(size)), **({} if coords is None else {k: list(v) for k, v in coords.items()})}
    made = {}
    for group, content in arrays.items():
        own = {m: ["sample"] for m in content} if group == "log_likelihood" else dims
        made[group] = _one_group(arviz, group, content, own, labels)
    first = next(iter(made.values()))
    if isinstance(first, getattr(arviz, "InferenceData", ())):
        return arviz.concat(*(part for group, part in made.items() if arrays[group]))
    return type(first).from_dict({group: part[group].to_dataset() for group, part in made.items() if arrays[group]})


def _one_group(arviz: Any, group: str, content: dict[str, Any], dims: Any, coords: Any) -> Any:
    """ArviZ 1.x takes the groups as one mapping, 0.x as keywords."""
    if int(arviz.__version__.split(".")[0]) >= 1:
        return arviz.from_dict({group: content}, dims=dims, coords=coords)
    return arviz.from_dict(**{group: content}, dims=dims, coords=coords)
