"""The door: what comes from outside is checked, brought into its inside form and filled, once.

Layer: stories.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor
from torch.distributions.constraints import Constraint

from pyro_mmvae.distributions import ColumnSupport, base_support, outside
from pyro_mmvae.masks import Data, ObsMask, batch_size, fill, normalize
from pyro_mmvae.stories.story import ModalitySite, Outline, Story, outline

__all__ = ["Door"]

_RESERVED = ("data", "terms", "particles")

_WAYS_OUT = {
    "boolean": "threshold it to {0, 1}, or use likelihood 'continuous_bernoulli' (a density on [0, 1]) or "
    "'relaxed_bernoulli' (cross-entropy)",
}


class Door:
    """
    Checks data and masks against a story and brings them into the inside form.

    Model and guide of one pair share a door, so that the same batch is checked and filled once.

    :param story: the story.
    :param modalities: names of its observed sites.
    """

    def __init__(self, story: Story, modalities: Sequence[str]) -> None:
        for name in modalities:
            if not isinstance(name, str) or not name:
                raise TypeError(f"modalities: expected names (non-empty strings), got {name!r}.")
        if not modalities:
            raise ValueError("modalities is empty. Fix: name at least one observed site of the story.")
        if len(set(modalities)) < len(modalities):
            raise ValueError(f"modalities: names repeat in {list(modalities)}.")
        for name in modalities:
            if name in _RESERVED:
                raise ValueError(f"modality {name!r}: the names {list(_RESERVED)} are reserved. Fix: rename it.")
        clash = [m for m in modalities if m in story.covariates]
        if clash:
            raise ValueError(f"{clash} are arguments of the story (covariates) and cannot be modalities as well.")
        self.story, self.modalities = story, tuple(modalities)
        self.further: tuple[str, ...] = ()
        self._outlines: dict[tuple[object, ...], Outline] = {}

    def let_in(self, names: Collection[str]) -> None:
        """
        Let covariates pass that a guide reads and the story does not take; they may be absent.

        :raises ValueError: if one is a modality.
        """
        clash = [name for name in names if name in self.modalities]
        if clash:
            raise ValueError(f"{clash} are modalities, and arguments of an encoder. Fix: rename these arguments.")
        new = [name for name in dict.fromkeys(names) if name not in (*self.story.covariates, *self.further)]
        self.further = (*self.further, *new)

    def outline(self, covariates: Mapping[str, Tensor] | None = None) -> Outline:
        """Sites, shapes and supports of the story; a dry run the first time that covariates have these shapes."""
        given = {} if covariates is None else covariates
        key = tuple((name, tuple(x.shape[1:]), x.dtype) for name, x in sorted(given.items()))
        if key not in self._outlines:
            found = outline(self.story, self.modalities, given)
            for name in (*_RESERVED, *self.modalities):
                if name in found.latents:
                    raise ValueError(f"{name!r} names a latent site and is taken. Fix: rename the latent.")
            self._outlines[key] = found
        return self._outlines[key]

    def __call__(
        self,
        data: Mapping[str, Tensor | None] | None,
        obs_mask: Mapping[str, Tensor | None] | None,
        n: int | None = None,
    ) -> tuple[Data, ObsMask]:
        """
        Checked and filled data, masks in inside form; what passed before passes unchanged.

        :raises ValueError: unknown keys, wrong shapes, ragged batches, NaN or infinity or values outside the
            support in observed entries, incomplete covariates.
        :raises TypeError: values that are no tensors, masks that are not bool.
        """
        if isinstance(data, Data) and isinstance(obs_mask, ObsMask):
            return data, obs_mask
        given = self._known_keys({} if data is None else data)
        size = batch_size(given, n)
        covariates = self._covariates(given, obs_mask)
        own = {name: x for name, x in covariates.items() if name in self.story.covariates}
        sites = self.outline(own).modalities
        shapes = {m: site.event_shape for m, site in sites.items()}
        absent = [m for m in self.modalities if m not in given]
        devices = {x.device for x in given.values()}
        device = devices.pop() if devices else _device(self.story)
        masks = normalize(obs_mask, shapes, size, absent=absent, device=device)
        out = Data(covariates)
        for name, site in sites.items():
            if name in given:
                masks[name] = _within_factors(name, masks[name], site)
                out[name] = _check_values(name, given[name], masks[name], site)
            else:
                fill_in = site.fill.to(device=device, dtype=_dtype(self.story, site))
                out[name] = fill_in.expand((size, *site.event_shape))
        out.size, out.filled = size, True
        return out, masks

    def _known_keys(self, data: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
        if not isinstance(data, Mapping):
            hint = " Fix: ds[i : i + 1] is one row of a data set." if isinstance(data, tuple) else ""
            raise TypeError(f"data: expected a mapping from modality to Tensor, got {type(data).__name__}.{hint}")
        covariates = (*self.story.covariates, *self.further)
        unknown = set(data) - {*self.modalities, *covariates}
        if unknown:
            raise ValueError(
                f"data has unknown keys {sorted(unknown)}; modalities are {list(self.modalities)}, covariates are "
                f"{list(covariates)}. Fix: drop or rename them."
            )
        for name, x in data.items():
            if x is not None and not isinstance(x, Tensor):
                kind = type(x).__name__
                fix = "MultimodalDataset.from_frames(data)" if kind == "DataFrame" else "torch.as_tensor(x)"
                raise TypeError(f"data[{name!r}]: expected a Tensor, got {kind}. Fix: {fix}.")
            if isinstance(x, Tensor) and x.dim() == 0:
                raise ValueError(f"data[{name!r}]: expected shape (B, *event), got a scalar. Fix: one row per sample.")
        return {name: x for name, x in data.items() if x is not None}

    def _covariates(self, data: Mapping[str, Tensor], obs_mask: Mapping[str, object] | None) -> dict[str, Tensor]:
        names = (*self.story.covariates, *self.further)
        for name in names:
            if isinstance(obs_mask, Mapping) and name in obs_mask:
                raise ValueError(
                    f"obs_mask[{name!r}]: {name!r} is a covariate (an argument of the story) and is always complete. "
                    "Fix: drop it from obs_mask; impute it before, or make it a modality."
                )
            if name in self.story.required and name not in data:
                raise ValueError(
                    f"data[{name!r}] is missing: the story takes the covariate {name!r} as argument. Fix: add it to "
                    "data, or give the argument a default."
                )
            if name in data and data[name].is_floating_point() and not bool(data[name].isfinite().all()):
                raise ValueError(
                    f"covariate {name!r} has NaN or infinite entries; covariates are always complete. Fix: impute it "
                    "before, or make it a modality."
                )
        return {name: data[name] for name in names if name in data}


def _device(story: Story) -> torch.device:
    return next((p.device for p in story.parameters()), torch.device("cpu"))


def _dtype(story: Story, site: ModalitySite) -> torch.dtype:
    return next((p.dtype for p in story.parameters() if p.is_floating_point()), site.fill.dtype)


def _check_values(
    name: str,
    x: Tensor,  # shape: (B, *event)
    mask: Tensor,  # shape: (B, *event or ones)
    site: ModalitySite,
) -> Tensor:  # shape: (B, *event), filled
    if x.shape[1:] != site.event_shape:
        raise ValueError(
            f"data[{name!r}]: expected shape {_shape(site.event_shape)}, got {tuple(x.shape)}. "
            f"The story's site {name!r} has event shape {tuple(site.event_shape)}. Fix: reshape the data, or check "
            ".to_event in the story."
        )
    filled, base = fill(x, mask, site.fill), base_support(site.support)
    if filled.is_floating_point():
        finite = filled.isfinite().reshape(len(filled), -1).all(-1)
        what = "is NaN or infinite where obs_mask says it is observed"
        _refuse(name, filled, ~finite, torch.isfinite, what, "mark it as missing in obs_mask (False)", base)
    bad = outside(site.support, filled) if site.fixed else None
    if bad is not None:
        kind = str(base).lower()
        ways = next((w for k, w in _WAYS_OUT.items() if k in kind), "mask it, or choose a likelihood for such values")
        columns = isinstance(base, ColumnSupport)
        what = "lies outside its support" if columns else f"lies outside the support of {site.likelihood} ({base})"
        _refuse(name, filled, bad, base.check, what, ways, base)
    return filled


def _shape(event: Sequence[int]) -> str:
    return "(B,)" if not event else f"(B, {', '.join(map(str, event))})"


def _refuse(
    name: str,
    x: Tensor,  # shape: (B, *event)
    bad: Tensor,  # shape: (B,), bool
    check: Callable[[Tensor], Tensor],
    what: str,
    fix: str,
    support: Constraint,
) -> None:
    """Name the first bad row and, where entries are good or bad one by one, the first bad entry and its column."""
    if not bool(bad.any()):
        return
    row = int(bad.nonzero()[0])
    good = check(x[row])
    entry = x[row][~good][0].item() if good.shape == x[row].shape else x[row].flatten()[:8].tolist()
    if isinstance(support, ColumnSupport):
        place = int((~good).nonzero()[0])
        column = support.columns[place]
        what = f"{what}; {column.likelihood} takes {support.expects(place)}"
        raise ValueError(f"data[{name!r}] row {row}, column {column.name!r}: value {entry} {what}. Fix: {fix}.")
    raise ValueError(f"data[{name!r}] row {row}: value {entry} {what}. Fix: {fix}.")


def _within_factors(
    name: str,
    mask: Tensor,  # shape: (B, *event or ones)
    site: ModalitySite,
) -> Tensor:  # shape: as mask, with ones in the dimensions over which the likelihood is joint
    """Features of one joint draw are observed together or not at all."""
    joint = base_support(site.support).event_dim if site.joint is None else site.joint
    if joint == 0 or all(size == 1 for size in mask.shape[1:]):
        return mask
    some = mask.any(tuple(range(-joint, 0)), keepdim=True)
    if not bool((mask == some).all()):
        raise ValueError(
            f"obs_mask[{name!r}]: a per-feature obs_mask needs a likelihood that factorizes over the masked features, "
            f"but {site.likelihood} is joint over its last {joint} event dimension(s). Fix: mask whole samples, shape "
            "(B,), or use a likelihood of independent features (.to_event)."
        )
    return some
