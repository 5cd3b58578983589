"""The laws of the design, run on a model and a guide of the user's own.

Layer: checks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from pyro_mmvae.checks.context import Context
from pyro_mmvae.checks.independence import modes_agree, particles_vectorize, rows_independent
from pyro_mmvae.checks.masks import content_irrelevant, every_mask_answered, hidden_not_scored, nothing_is_free
from pyro_mmvae.checks.parameters import gradients_finite, parameters_reached, parameters_registered
from pyro_mmvae.checks.report import Finding, Report, broken, skipped
from pyro_mmvae.checks.runs import ProgramError
from pyro_mmvae.checks.sites import (
    draws_reparametrized,
    event_dimensions,
    likelihoods_whole,
    one_plate,
    programs_run,
    sites_match,
    supports_match,
)
from pyro_mmvae.checks.state import networks_of, untouched
from pyro_mmvae.checks.surroundings import devices_and_dtypes_agree, state_left_as_found
from pyro_mmvae.datasets import MultimodalDataset

__all__ = ["LAWS", "check"]

Law = Callable[[Context], Finding]

#: Name of a law -> the function that checks it, in the order of the report.
LAWS: dict[str, Law] = {
    "programs run": programs_run,
    "sites match": sites_match,
    "one data plate": one_plate,
    "event dimensions": event_dimensions,
    "supports match": supports_match,
    "likelihoods are whole": likelihoods_whole,
    "rows are independent": rows_independent,
    "masked content is irrelevant": content_irrelevant,
    "hidden is not scored": hidden_not_scored,
    "guide answers every mask": every_mask_answered,
    "nothing observed is free": nothing_is_free,
    "gradients are finite": gradients_finite,
    "gradients reach every parameter": parameters_reached,
    "parameters are registered": parameters_registered,
    "draws are reparametrized": draws_reparametrized,
    "particles vectorize": particles_vectorize,
    "devices and dtypes agree": devices_and_dtypes_agree,
    "state is left as found": state_left_as_found,
    "training and evaluation agree": modes_agree,
}
_BLOCKED = "could not be checked: the "
WITHOUT_RUNNING = ("programs run", "event dimensions", "devices and dtypes agree")


def check(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Mapping[str, Tensor | None] | MultimodalDataset,
    obs_mask: Mapping[str, Tensor | None] | None = None,
    *,
    objective: Any = None,
    seed: int = 0,
) -> Report:
    """
    Run the laws that every pair of programs should keep, and say for each whether it holds, where not, and the fix.

    A few rows of the data are looked at, under every set of modalities (of more than five: none, one, all but one and
    all). Both programs are run as stock Pyro runs them, ``guide(data, obs_mask)`` and ``model(data, obs_mask)``, on
    plain mappings. Works for models made by :func:`pyro_mmvae.observe`, native ones, with their own plates, global
    and enumerated sites, and for any guide. Networks run in training mode without dropout.

    Laws: inputs, parameters, gradients, modes, Pyro's store, random and global state are afterwards as they were;
    nothing is printed.

    Example::

        >>> import pyro, pyro.distributions as dist, torch
        >>> import pyro_mmvae as mm
        >>> def story():
        ...     z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...     pyro.sample("x", dist.Normal(z, 1.0).to_event(1))
        >>> model = mm.observe(story, ("x",))
        >>> def guide(data, obs_mask):
        ...     with pyro.plate("data", len(data["x"])):
        ...         pyro.sample("zz", dist.Normal(data["x"], 1.0).to_event(1))
        >>> report = mm.check(model, guide, {"x": torch.randn(9, 2)})
        >>> bool(report), report["sites match"].site, report["sites match"].fix
        (False, 'z', "sample 'z' in the guide, which has 'zz'.")

    :param data: modality (or covariate) -> Tensor ``(B, *event)``, or a dataset.
    :param obs_mask: modality -> bool ``(B,)`` or ``(B, *event)``, True = observed; None: everything.
    :param objective: anything with ``differentiable_loss(model, guide, data, obs_mask)``, if it is to be looked at too:
        it may reach parameters that log p - log q does not.
    :param seed: of the draws.
    :return: a table to be printed; true if nothing is broken.
    :raises TypeError: if data is no mapping, or masks come beside a dataset.
    """
    values, masks = _tensors(data, obs_mask)
    networks = {**networks_of(model), **{f"guide {k}": m for k, m in networks_of(guide).items()}}
    if isinstance(objective, nn.Module):
        networks["objective"] = objective
    with untouched(networks):
        context = Context(model, guide, objective, values, masks, seed)
        found = {name: _checked(name, law, context) for name, law in LAWS.items()}
    blocked = [name for name, finding in found.items() if finding.message.startswith(_BLOCKED)]
    if blocked and not any(finding.status == "broken" for finding in found.values()):
        first = found[blocked[0]]
        found[blocked[0]] = broken(first.message.removeprefix(_BLOCKED), "make both programs run under such masks.")
    return Report(tuple(replace(finding, law=name) for name, finding in found.items()))


def _tensors(data: Any, obs_mask: Any) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    if isinstance(data, MultimodalDataset):
        if obs_mask is not None:
            raise TypeError("obs_mask: a dataset has its own. Fix: pass data.data and a mask, or the dataset alone.")
        return data.data, data.obs_mask
    if not isinstance(data, Mapping):
        raise TypeError(f"data: expected a mapping from modality to Tensor, got {type(data).__name__}.")
    if obs_mask is not None and not isinstance(obs_mask, Mapping):
        raise TypeError(f"obs_mask: expected a mapping from modality to Tensor, got {type(obs_mask).__name__}.")
    return data, {} if obs_mask is None else obs_mask


def _checked(name: str, law: Law, context: Context) -> Finding:
    if context.problem is not None and name not in WITHOUT_RUNNING:
        return skipped("the programs do not run")
    try:
        return law(context)
    except ProgramError as error:
        if name in ("programs run", "event dimensions"):
            return broken(str(error), "make both programs run.", program=error.program, site=error.site)
        return skipped(f"{_BLOCKED}{error}")
