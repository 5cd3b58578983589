"""Generation from the prior, and likelihoods at latents that are given.

Layer: inference.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_mmvae.datasets import MultimodalDataset
from pyro_mmvae.distributions import Lazy, map_params
from pyro_mmvae.inference._anatomy import anatomy
from pyro_mmvae.inference._batch import Batch, Values, at_home, evaluation, known_names, positive, prepared
from pyro_mmvae.inference._run import run_model
from pyro_mmvae.inference.predict import ancestral
from pyro_mmvae.inference.predictive import PredictMessenger
from pyro_mmvae.stories import ObservedModel, Outline

__all__ = ["decode", "generate"]

Sampler = TorchDistribution | Mapping[str, TorchDistribution] | Callable[[int], Tensor | Mapping[str, Tensor]]


def generate(
    model: Callable[..., Any],
    guide: Callable[..., Any] | None,
    n: int,
    *,
    prior: Sampler | None = None,
    data: Values = None,
    target: Collection[str] | None = None,
    noise: bool = True,
    return_latents: bool = False,
) -> dict[str, Tensor]:  # {modality: shape (n, *event)}
    r"""
    New samples, drawn along the story.

    .. math:: z \sim p(z), \qquad x_m \sim p(x_m \mid z)

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> import pyro_mmvae as mm
        >>> def story():
        ...     z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...     pyro.sample("x", dist.Normal(z, 1.0).to_event(1))
        >>> model = mm.observe(story, ("x",))
        >>> generate(model, None, 5)["x"].shape
        torch.Size([5, 2])
        >>> bool((generate(model, None, 5, prior=dist.Normal(torch.full((2,), 99.0), 1.0).to_event(1))["x"] > 9).all())
        True

    :param guide: not used; every verb takes a pair.
    :param n: number of samples.
    :param prior: replaces p(z): a Distribution over the only shared latent, site -> Distribution, or a function from n
        to draws ``(n, *event)`` of that latent or to site -> draws. Latents it does not name come from the story.
    :param data: the story's covariates, ``(n, ...)`` each.
    :param target: modalities to generate; networks of others are not run, unless they feed these. Default: all.
    :param noise: draws of p(x | z); False: means, or class probabilities.
    :param return_latents: put the latents into the result, by site.
    :raises ValueError: for unknown names or sites, wrong shapes, or n below 1.
    """
    positive("n", n)
    with evaluation(model, guide):
        batch = _story_batch(model, data, n)
        latents = _outline(model, data).latents
        drawn = {} if prior is None else _drawn(prior, n, model, latents)
        values = {site: _inside(x, site, batch, (1, 1)) for site, x in at_home(drawn, model).items()}
        wanted = known_names("target", target, batch.names)
        wanted = batch.names if wanted is None else wanted
        out = ancestral(batch, batch.masks(()), values, 1, wanted, noise=noise, latents=return_latents)
    return {name: x.squeeze(0).to(batch.device) for name, x in out.items()}


def decode(
    model: Callable[..., Any],
    z: Tensor | Mapping[str, Tensor],
    *,
    data: Values = None,
    target: Collection[str] | None = None,
) -> dict[str, Any]:  # {modality: Distribution of batch shape (*sample, B)}
    r"""
    The likelihoods :math:`p(x_m \mid z)`.

    Networks run before this returns, in evaluation mode and without gradient. Latents that are not given (private ones)
    are drawn from the story, one draw per row of z. Where one modality feeds another, a draw is passed on.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> import pyro_mmvae as mm
        >>> def story():
        ...     z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...     pyro.sample("x", dist.Normal(z, 1.0).to_event(1))
        >>> model = mm.observe(story, ("x",))
        >>> lik = decode(model, torch.zeros(7, 5, 2))["x"]
        >>> lik.batch_shape, lik.mean.shape
        (torch.Size([7, 5]), torch.Size([7, 5, 2]))

    :param z: values ``(*sample, B, *event)`` of the only shared latent, or site -> values.
    :param data: the story's covariates, ``(B, ...)`` each.
    :param target: modalities to decode; networks of others are not run, unless they feed these. Default: all.
    :raises ValueError: for unknown sites or names, or shapes that do not fit.
    """
    with evaluation(model):
        latents = _outline(model, data).latents
        if not isinstance(z, Tensor | Mapping):
            raise TypeError(f"z: expected a Tensor or a mapping from site to Tensor, got {type(z).__name__}.")
        values = dict(z) if isinstance(z, Mapping) else {_shared(model, latents): z}
        _check_sites("z", values, latents)
        batch = _story_batch(model, data, _size(values, latents))
        lead = _lead(values, latents, batch)
        inside = {s: _inside(x, s, batch, lead) for s, x in at_home(values, model).items()}
        wanted = known_names("target", target, batch.names)
        wanted = batch.names if wanted is None else wanted
        feeding = anatomy(batch).feeding(wanted, batch.names)
        messenger = PredictMessenger(batch.data, batch.masks(()), wanted, feeding=feeding, result=_dense)
        run_model(batch, batch.masks(()), inside, lead, outer=messenger)
        return {m: _flat_plates(messenger.results[m], batch, lead) for m in wanted}


def _dense(fn: TorchDistribution) -> TorchDistribution:
    return fn.dense() if isinstance(fn, Lazy) else fn


def _covariates(model: Any, data: Values) -> dict[str, Tensor]:
    """The story's arguments, whatever else is in the data."""
    if data is None:
        return {}
    tensors = data.data if isinstance(data, MultimodalDataset) else data
    return at_home({name: x for name, x in tensors.items() if name in model.covariates and x is not None}, model)


def _outline(model: Any, data: Values) -> Outline:
    """The story's sites, covariates considered."""
    if not isinstance(model, ObservedModel):
        raise NotImplementedError(
            f"generate and decode run a story by itself, which {type(model).__name__} does not have. Fix: make the "
            "model with pyro_mmvae.observe(story, modalities), or run it with pyro.infer.Predictive."
        )
    covariates = _covariates(model, data)
    missing = [name for name in model.story.required if name not in covariates]
    if missing:
        raise ValueError(f"data: the story takes the covariates {missing}. Fix: data={{{missing[0]!r}: ...}}.")
    return model.door.outline(covariates)


def _story_batch(model: Any, data: Values, n: int) -> Batch:
    """Rows of which nothing is observed."""
    _outline(model, data)
    return prepared(model, None, _covariates(model, data), None, n)


def _shared(model: Any, latents: Mapping[str, Any]) -> str:
    """The only latent that is not private."""
    shared = [site for site in latents if site not in model.private]
    if len(shared) != 1:
        raise ValueError(f"the story has {len(shared)} shared latents, {shared}. Fix: name them, {{site: values}}.")
    return shared[0]


def _check_sites(what: str, sites: Collection[str], latents: Mapping[str, Any]) -> None:
    unknown = [site for site in sites if site not in latents]
    if unknown or not sites:
        raise ValueError(f"{what}: {unknown} are no latents of the story; its latents are {list(latents)}.")


def _drawn(prior: Sampler, n: int, model: Any, latents: Mapping[str, Any]) -> dict[str, Tensor]:
    """Draws ``(n, *event)`` of the latents that the sampler knows."""
    if isinstance(prior, torch.distributions.Distribution):
        prior = {_shared(model, latents): prior}
    if isinstance(prior, Mapping):
        found: Any = {site: _sampled(fn, n) for site, fn in prior.items()}
    elif callable(prior):
        found = prior(n)  # type: ignore[arg-type]
    else:
        raise TypeError(f"prior: expected a Distribution, a mapping or a function of n, got {type(prior).__name__}.")
    if isinstance(found, Tensor):
        found = {_shared(model, latents): found}
    _check_sites("prior", found, latents)
    for site, x in found.items():
        event = tuple(latents[site].event_shape)
        if x.shape[0] != n or tuple(x.shape[x.dim() - len(event) :]) != event:
            raise ValueError(f"prior: draws of {site!r} have shape {tuple(x.shape)}, expected {(n, *event)}.")
    return dict(found)


def _sampled(fn: TorchDistribution, n: int) -> Tensor:
    return fn.sample() if tuple(fn.batch_shape) == (n,) else fn.sample(torch.Size([n]))


def _size(values: Mapping[str, Tensor], latents: Mapping[str, Any]) -> int:
    """The number of rows."""
    site, x = next(iter(values.items()))
    event = tuple(latents[site].event_shape)
    if x.dim() <= len(event):
        raise ValueError(f"z: site {site!r}: expected shape {('*sample', 'B', *event)}, got {tuple(x.shape)}.")
    return x.shape[-1 - len(event)]


def _lead(values: Mapping[str, Tensor], latents: Mapping[str, Any], batch: Batch) -> tuple[int, ...]:
    """The sample dimensions that all values share."""
    plates, leads = anatomy(batch).plates, {}
    for site, x in values.items():
        event = tuple(latents[site].event_shape)
        dims = x.dim() - len(event)
        if dims < 1 + len(plates[site]) or tuple(x.shape[dims - 1 :]) != (batch.size, *event):
            want = ("*sample", *("plate" for _ in plates[site]), batch.size, *event)
            raise ValueError(f"z: site {site!r}: expected shape {want}, got {tuple(x.shape)}.")
        leads[site] = tuple(x.shape[: dims - 1 - len(plates[site])])
    if len(set(leads.values())) > 1:
        raise ValueError(f"z: sample dimensions differ between sites: {leads}.")
    return next(iter(leads.values()))


def _inside(x: Tensor, site: str, batch: Batch, lead: tuple[int, ...]) -> Tensor:
    """``(*lead, *plates, B, *event)`` in the layout of plates, with ones for those that the site is not in."""
    look = anatomy(batch)
    used, event_dim = look.plates[site], look.event_dim[site]
    event = x.shape[x.dim() - event_dim :]
    sizes = dict(zip(used, x.shape[x.dim() - event_dim - 1 - len(used) :], strict=False))
    inner = [sizes.get(d, 1) for d in range(-batch.nesting, -1)]
    return x.reshape(*lead, *inner, batch.size, *event)


def _flat_plates(fn: Any, batch: Batch, lead: tuple[int, ...]) -> Any:
    """A likelihood of batch shape ``(*lead, B)``."""
    full = (*lead, *(1,) * (batch.nesting - 1), batch.size)
    fn = fn if tuple(fn.batch_shape) == full else fn.expand(full)
    if batch.nesting == 1:
        return fn
    flat = (*lead, batch.size)

    def without(p: Tensor, constraint: Any, k: int) -> Tensor:
        event = p.shape[p.dim() - k :]
        return p.expand(full + event).reshape(flat + event)

    return map_params(fn, without)
