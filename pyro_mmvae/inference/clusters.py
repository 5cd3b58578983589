"""Clusters of samples under a mixture prior: which one a sample is in, and which ones there are.

Layer: inference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
from torch import Tensor

from pyro_mmvae.inference._batch import Masks, Values, evaluation, known_names, positive, prepared, split
from pyro_mmvae.inference._clusters import clustered, over_observed, per_modality, vote
from pyro_mmvae.stories import MixturePrior

__all__ = ["ClusterPruning", "predict_clusters", "prune_clusters"]

Method = Literal["vote", "mean"]


@overload
def predict_clusters(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Values = ...,
    obs_mask: Masks = ...,
    *,
    given: Collection[str] | None = ...,
    num_samples: int = ...,
    method: Method = ...,
    return_probabilities: Literal[False] = ...,
    latent: str | None = ...,
    batch_size: int = ...,
) -> Tensor: ...


@overload
def predict_clusters(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Values = ...,
    obs_mask: Masks = ...,
    *,
    given: Collection[str] | None = ...,
    num_samples: int = ...,
    method: Method = ...,
    return_probabilities: Literal[True],
    latent: str | None = ...,
    batch_size: int = ...,
) -> tuple[Tensor, Tensor]: ...


def predict_clusters(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Values = None,
    obs_mask: Masks = None,
    *,
    given: Collection[str] | None = None,
    num_samples: int = 1,
    method: Method = "vote",
    return_probabilities: bool = False,
    latent: str | None = None,
    batch_size: int = 512,
) -> Tensor | tuple[Tensor, Tensor]:  # shape: (B,), and (B, C)
    r"""
    The cluster of each sample, from each observed modality by itself.

    .. math:: P_m(c) = \frac1K \sum_k p(c \mid z_m^{(k)}), \quad z_m^{(k)} \sim q(z \mid x_m), \qquad
        P(c) = \frac{1}{|S|} \sum_{m \in S} P_m(c)

    S is what is observed of ``given``. "vote" takes the cluster that is the most probable one for the most modalities,
    the smallest index of equals [1]; "mean" takes the most probable one under P. Where nothing is observed, P is the
    prior's weights and the cluster the largest of these. Modalities without an encoder of the latent have no say.

    Example::

        >>> import pyro_mmvae as mm
        >>> dec = {m: mm.nn.MLPDecoder(2, 4) for m in ("a", "b")}
        >>> model = mm.observe(mm.stories.Shared(dec, mm.stories.MixturePrior(2, 5)), ("a", "b"))
        >>> guide = mm.guides.Product(model, {m: mm.nn.MLPEncoder(4, 2) for m in ("a", "b")})
        >>> data = {"a": torch.zeros(3, 4)}
        >>> clusters, probabilities = predict_clusters(model, guide, data, return_probabilities=True)
        >>> clusters.shape, probabilities.shape
        (torch.Size([3]), torch.Size([3, 5]))

    :param data: modality -> Tensor ``(B, *event)`` with the covariates, or a dataset (which has its masks).
    :param obs_mask: modality -> bool ``(B,)`` or ``(B, *event)``, True = observed; None: everything.
    :param given: modalities to condition on; default: all that is observed.
    :param num_samples: K.
    :param return_probabilities: return P too.
    :param latent: the latent site, if several have a :class:`pyro_mmvae.stories.MixturePrior`.
    :param batch_size: rows that go through the encoders at a time.
    :raises ValueError: if no latent has a mixture prior, several do and none was chosen, or for unknown names.
    :raises NotImplementedError: for a model that was not made from a story, or a latent in plates of the story's own.

    [1] *Deep Generative Clustering with Multimodal Diffusion Variational Autoencoders*, Palumbo, Manduchi, Laguna,
    Chopard and Vogt, ICLR 2024, OpenReview k5THrhXDV3.
    """
    positive("num_samples", num_samples)
    if method not in ("vote", "mean"):
        raise ValueError(f"method: expected 'vote' or 'mean', got {method!r}.")
    with evaluation(model, guide):
        batch = prepared(model, guide, data, obs_mask)
        names = known_names("given", given, batch.names)
        site, prior = clustered(batch, latent)
        log_weights = prior.log_weights()
        parts = []
        for block in split(batch, batch_size):
            log_components, observed = per_modality(block, block.masks(names), site, prior, num_samples)
            each = (log_components + log_weights).softmax(-1).mean(0)
            together = torch.where(observed.any(0).unsqueeze(-1), over_observed(each, observed), log_weights.exp())
            chosen = vote(each, observed) if method == "vote" else together.argmax(-1)
            parts.append((torch.where(observed.any(0), chosen, log_weights.argmax()), together))
    clusters, probabilities = (torch.cat(xs).to(batch.device) for xs in zip(*parts, strict=True))
    return (clusters, probabilities) if return_probabilities else clusters


@dataclass(frozen=True)
class ClusterPruning:
    """
    What :func:`prune_clusters` saw: R sets of clusters, each the one before without its smallest.

    :ivar counts: how many clusters each set has, ``(R,)``, falling to 1.
    :ivar entropy: penalized normalized entropy of each set, ``(R,)``; the smallest is best, that of 1 does not count.
    :ivar removed: the clusters in the order in which they were removed, ``(R - 1,)``.
    :ivar active: the set that was kept, bool ``(C,)``.
    """

    counts: Tensor
    entropy: Tensor
    removed: Tensor
    active: Tensor


def prune_clusters(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Values = None,
    obs_mask: Masks = None,
    *,
    given: Collection[str] | None = None,
    num_samples: int = 1,
    beta: float = 1.0,
    latent: str | None = None,
    batch_size: int = 512,
) -> ClusterPruning:
    r"""
    Switch off the clusters that a trained model does not use, by the entropy criterion of [1].

    .. math:: \mathrm{PNE}(A) = \operatorname{mean}_n \operatorname{mean}_{m \in S_n} \Bigl(
        \beta \, \frac{H[p_A(c \mid z_m)]}{\log |A|} - \frac{\log p_A(z_m)}{D} \Bigr), \qquad z_m \sim q(z \mid x_m)

    From the active set A the cluster of the smallest mass is removed until one is left; the set of the smallest
    entropy with two clusters or more is kept. A sample's mass is its largest mean
    probability and goes to the cluster it is assigned to by vote, see :func:`predict_clusters`. Of equal masses the
    smallest index goes first. The draws are made once, so that sets are compared on the same ones.

    The prior's ``active`` buffer is set in place, and everything else of the model is untouched: its weights are
    renormalized over what is left. Setting ``prior.active`` to True again undoes it. Use data that was not trained on.

    Example::

        >>> import pyro_mmvae as mm
        >>> dec = {m: mm.nn.MLPDecoder(2, 4) for m in ("a", "b")}
        >>> model = mm.observe(mm.stories.Shared(dec, mm.stories.MixturePrior(2, 5)), ("a", "b"))
        >>> guide = mm.guides.Product(model, {m: mm.nn.MLPEncoder(4, 2) for m in ("a", "b")})
        >>> done = prune_clusters(model, guide, {"a": torch.randn(20, 4)})
        >>> done.counts.tolist(), len(done.removed)
        ([5, 4, 3, 2, 1], 4)

    :param data: modality -> Tensor ``(B, *event)`` with the covariates, or a dataset (which has its masks).
    :param obs_mask: modality -> bool ``(B,)`` or ``(B, *event)``, True = observed; None: everything.
    :param given: modalities to look at; default: all that is observed.
    :param num_samples: draws per modality and sample; the terms are averaged over them.
    :param beta: weight of the entropy.
    :param latent: the latent site, if several have a :class:`pyro_mmvae.stories.MixturePrior`.
    :param batch_size: rows that go through the encoders at a time.
    :raises ValueError: if no row observes anything, ``beta`` is negative, and as in :func:`predict_clusters`.
    :raises NotImplementedError: as in :func:`predict_clusters`.

    [1] *Deep Generative Clustering with Multimodal Diffusion Variational Autoencoders*, Palumbo, Manduchi, Laguna,
    Chopard and Vogt, ICLR 2024, OpenReview k5THrhXDV3; the procedure is that of the published code.
    """
    positive("num_samples", num_samples)
    if not 0 <= beta < math.inf:
        raise ValueError(f"beta: expected a finite number >= 0, got {beta!r}.")
    with evaluation(model, guide):
        batch = prepared(model, guide, data, obs_mask)
        names = known_names("given", given, batch.names)
        site, prior = clustered(batch, latent)
        parts = []
        for block in split(batch, batch_size):
            log_components, observed = per_modality(block, block.masks(names), site, prior, num_samples)
            rows = observed.any(0)
            parts.append((log_components[:, :, rows], observed[:, rows]))
        log_components, observed = torch.cat([p[0] for p in parts], 2), torch.cat([p[1] for p in parts], 1)
        if observed.shape[1] == 0:
            wanted = batch.names if names is None else names
            raise ValueError(f"obs_mask: no row observes any of {list(wanted)}, so nothing tells clusters apart.")
        done = _pruned(prior, log_components, observed, beta)
        prior.active.copy_(done.active)
    return ClusterPruning(*(x.to(batch.device) for x in (done.counts, done.entropy, done.removed, done.active)))


def _pruned(
    prior: MixturePrior,
    log_components: Tensor,  # shape: (K, M, B, C)
    observed: Tensor,  # shape: (M, B)
    beta: float,
) -> ClusterPruning:
    """Remove clusters down to one, and find the best set on the way."""
    active = prior.active.clone()
    sets, entropies, removed = [active.clone()], [], []
    while True:
        entropy, mass = _appraised(prior, active, log_components, observed, beta)
        entropies.append(entropy)
        if int(active.sum()) <= 1:
            break
        smallest = mass.masked_fill(~active, torch.inf).argmin()
        removed.append(smallest)
        active[smallest] = False
        sets.append(active.clone())
    values = torch.stack(entropies)
    best = int(values[: max(len(sets) - 1, 1)].argmin())
    order = torch.stack(removed) if removed else active.new_zeros(0, dtype=torch.long)
    return ClusterPruning(torch.stack(sets).sum(-1), values, order, sets[best])


def _appraised(
    prior: MixturePrior, active: Tensor, log_components: Tensor, observed: Tensor, beta: float
) -> tuple[Tensor, Tensor]:  # shape: (), (C,)
    """The penalized normalized entropy of a set of clusters, and the mass of each."""
    log_joint = log_components + prior.log_weights(active)
    log_posterior = log_joint.log_softmax(-1)
    posterior = log_posterior.exp()
    count = int(active.sum())
    entropy = -(posterior * log_posterior).sum(-1) / (math.log(count) if count > 1 else 1.0)
    log_density = log_joint.logsumexp(-1) / prior.loc.shape[-1]
    each = posterior.mean(0)
    assigned = torch.nn.functional.one_hot(vote(each, observed), each.shape[-1])
    mass = (assigned * over_observed(each, observed).amax(-1, keepdim=True)).sum(0)
    return over_observed((beta * entropy - log_density).mean(0), observed).mean(), mass
