"""A guide from a story alone.

Layer: guides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide, AutoNormal
from torch import Tensor

from pyro_mmvae.guides.auto.build import build, home_of
from pyro_mmvae.guides.auto.guide import Auto
from pyro_mmvae.guides.auto.look import Program, first_masks, is_native, looking
from pyro_mmvae.guides.auto.parts import Parts
from pyro_mmvae.handlers.registration import own_parameters
from pyro_mmvae.stories import ObservedModel, observe

__all__ = ["auto"]


def auto(
    story: ObservedModel | Callable[..., Any],
    modalities: Sequence[str] | None = None,
    *,
    private: Mapping[str, str] | None = None,
    data: Any = None,
    obs_mask: Mapping[str, Tensor | None] | None = None,
    hidden: Sequence[int] = (64, 64),
    flow: int | bool = 1,
    global_guide: Callable[[Any], AutoGuide] = AutoNormal,
) -> Auto:
    r"""
    A guide for a story of your own, with no guide code: it answers every mask.

    .. math:: q(z_{1:L} \mid x_S) = \prod_l q(z_l \mid z_{<l}, x_S), \qquad
        z_l = T_l(\mu_l + \Sigma_l y_l), \quad y_l = c_l + S_l (\delta_l + R_l\, g_l(e)), \; e \sim N(0, I)

    Coordinates: T is ``biject_to(support)``, and :math:`\mu_l, \Sigma_l` standardize the story's own prior
    :math:`p(z_l \mid z_{<l})`. A latent that nothing observed tells of keeps that prior exactly.

    Gaussian factors: :math:`c_l, S_l` are the conditional of a Gaussian over all latents to which each observed entry
    contributes one factor. They start from a regression on draws of the story and are exact, for every mask, where
    the story is linear-Gaussian. Networks: the shift :math:`\delta`, the triangular root R and the bends g (skew and
    tails) come from a set encoder, the sum over observed modalities of features of their entries and their masks
    through one shared trunk, and a head per latent; they start at 0, I and the identity.

    Structure: what a head sees, of modalities and of latents before it, is read off the story's dependency graph
    (``pyro.infer.inspect.get_dependencies``). Where values cannot be followed through the story, everything depends
    on everything before it. A private latent listens to its own modality and to the latents before it: sample
    shared latents first.

    Entries are looked at by the support of their likelihood: reals standardized, counts log1p, positive numbers and
    simplices log, classes one-hot; covariates beside them. Location and scale come from ``data``; else from draws of
    the story, and the first training batch of 32 rows or more replaces those that are far off.

    Discrete latents marked ``infer={"enumerate": "parallel"}`` are left to ``TraceEnum_ELBO``; a latent that depends
    on them gets a mixture, one component for each of their values. Sites outside the plate ``data`` (native models) are
    drawn first, from ``global_guide``, and seen by the heads.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> import pyro_mmvae as mm
        >>> def story():
        ...     z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...     pyro.sample("size", dist.LogNormal(z, 0.5).to_event(1))
        ...     pyro.sample("seen", dist.Bernoulli(logits=z).to_event(1))
        >>> model = mm.observe(story, ("size", "seen"))
        >>> vae = mm.MultimodalVAE(model, auto(model))
        >>> vae.posterior({"size": torch.ones(3, 2)}).mean.shape  # "seen" is missing
        torch.Size([3, 2])

    :param story: an observed model, a story (then with ``modalities``), or a native model ``model(data, obs_mask)``
        with a plate ``data`` of its own, at dim -1.
    :param modalities: names of the observed sites, if ``story`` is a story.
    :param private: latent -> the modality it is private to, if ``story`` is a story.
    :param data: a dataset, or modality -> Tensor ``(N, *event)`` with the covariates. Needed by native models and by
        stories with covariates, of which it shows shapes and categories; nothing of it but scales is kept.
    :param obs_mask: masks of ``data``, unless it is a dataset.
    :param hidden: widths of the shared trunk; the last one is that of the heads.
    :param flow: number of bends; 0 or False: Normals with a full covariance (diagonal where all latents
        together have more than 24 dimensions).
    :param global_guide: makes the AutoGuide of the sites outside the plate, such as AutoNormal or
        AutoMultivariateNormal, from the model with everything else blocked.
    :raises ValueError: if modalities, or data that the program needs, are not given.
    :raises NotImplementedError: for discrete latents that are not marked, latents inside further plates of the story,
        and discrete global sites; the message has the way out.

    [1] *Faithful Inversion of Generative Models for Effective Amortized Inference*, Webb et al., NeurIPS 2018,
    arXiv:1712.00287 (which sites a head sees).
    """
    if not len(hidden) or int(flow) < 0:
        raise ValueError(f"auto: expected widths and a number of bends, got hidden={hidden!r} and flow={flow!r}.")
    rows, masks, levels = _rows(data, obs_mask)
    model: Any = story
    other = modalities is not None and tuple(modalities) != getattr(story, "modalities", None)
    if isinstance(story, ObservedModel) and (private is not None or other):
        raise ValueError(
            "auto: modalities and private are those of the observed model. Fix: leave them out, or pass the story."
        )
    if not isinstance(story, ObservedModel) and not is_native(story):
        if modalities is None:
            raise ValueError("auto: which sites of the story are modalities? Fix: modalities=('a', 'b').")
        model = observe(story, modalities, private=private)
    program = _program(model, rows, masks)
    program.columns = levels
    home = home_of(program)
    with torch.device(home.device):
        parts = build(program, home, tuple(hidden), int(flow))
        outer = _outer_guide(program, parts, global_guide)
    program.data, program.obs_mask = {}, None
    return Auto(program, parts, outer)


def _program(model: Any, rows: dict[str, Any], masks: Any) -> Program:
    """The program and the rows that it can be run on."""
    if not isinstance(model, ObservedModel):
        if not rows:
            raise ValueError("auto: a native model is run on data to see its sites. Fix: data=some rows of it.")
        return Program(model, rows, masks)
    missing = [n for n in model.story.required if n not in rows]
    if missing:
        raise ValueError(
            f"auto: the story takes the covariates {missing}, so it cannot be run without them. Fix: data=a dataset "
            "or some rows that have them."
        )
    known = (*model.modalities, *model.covariates)
    return Program(model, {name: x for name, x in rows.items() if name in known}, masks)


def _outer_guide(program: Program, parts: Parts, make: Callable[[Any], AutoGuide]) -> AutoGuide | None:
    """The AutoGuide of all sites outside the plate ``data``, its parameters made."""
    if not parts.all_outer:
        return None
    data, masks = program.prepare(program.data, program.obs_mask, None)
    with looking(program.model), own_parameters():
        guide = make(poutine.block(_AsWritten(program.model), expose=list(parts.all_outer)))
        guide(dict(data), first_masks(masks))
    return guide.to(next(parts.parameters()))


class _AsWritten:
    """
    A model for the AutoGuide that looks at its sites: PyroModules made where the store holds parameters run only there.
    What it puts into the store is dropped.
    """

    def __init__(self, model: Callable[..., Any]) -> None:
        self.model = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with pyro.settings.context(module_local_params=False), pyro.get_param_store().scope():
            return self.model(*args, **kwargs)


def _rows(data: Any, obs_mask: Any) -> tuple[dict[str, Any], Any, dict[str, int]]:
    """Rows, masks and numbers of categories, of a dataset or of tensors."""
    if data is None:
        return {}, None, {}
    own = getattr(data, "obs_mask", None)
    if own is None:
        return dict(data), obs_mask, {}
    if obs_mask is not None:
        raise TypeError("obs_mask: a dataset has its own. Fix: data=ds.data, or the dataset alone.")
    columns = getattr(getattr(data, "frames", None), "context", ())
    return dict(data.data), own, {str(c.name): len(c.levels) for c in columns if c.levels}
