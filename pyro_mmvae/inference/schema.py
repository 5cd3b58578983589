"""Whether a data set made from DataFrames has the columns that a model was made for.

Layer: inference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from pyro_mmvae.columns import Column
from pyro_mmvae.datasets import MultimodalDataset
from pyro_mmvae.nn import Columns, Context
from pyro_mmvae.stories import ObservedModel

__all__ = ["check_columns"]

_FIX = "Fix: from_frames(frames, like=the training data)."


def check_columns(
    model: Callable[..., Any], ds: object, guide: Callable[..., Any] | None = None, *, whole: bool = False
) -> None:
    """
    Compare the columns of a data set with those of the likelihoods of a library story's decoders, and its covariates
    with those that networks of model and guide read.

    Data sets without frames, and networks that know no columns, pass.

    Example::

        >>> import pandas as pd, pyro_mmvae as mm
        >>> train, test = (mm.MultimodalDataset.from_frames({"x": pd.DataFrame({name: [1.5, 2.5]})}) for name in "ab")
        >>> vae = mm.MVAE.for_data(train, latent_dim=1)
        >>> check_columns(vae.model, test)
        Traceback (most recent call last):
        ...
        ValueError: x, column 0: the model has 'a', the data 'b'. Fix: from_frames(frames, like=the training data).

    :param whole: whether every modality of the model needs a table.
    :raises ValueError: at the first column whose name, likelihood or levels differ, a table or a covariate that is not
        there.
    """
    if not isinstance(ds, MultimodalDataset) or ds.frames is None:
        return
    columns = ds.frames.columns
    names = model.modalities if isinstance(model, ObservedModel) else tuple(columns)
    unknown = [m for m in columns if m not in names]
    if unknown:
        raise ValueError(f"the model has no modality {unknown}; it has {list(names)}. Fix: leave these tables out.")
    absent = [m for m in names if m not in columns]
    if absent and whole:
        raise ValueError(f"no table for the modality {absent} of the model. {_FIX[:-1]}, or target={set(columns)}.")
    for m, own in _columns_of(model):
        if m in columns:
            _compare(m, own, columns[m])
    known = {str(c.name): c for c in ds.frames.context}
    for own in _contexts_of(model, guide):
        _compare_context(own, known, ds)


def _columns_of(model: Callable[..., Any]) -> Iterator[tuple[str, tuple[Column, ...]]]:
    """The columns of each decoder that has some."""
    decoders = getattr(model.story.program, "decoders", {}) if isinstance(model, ObservedModel) else {}
    for m in decoders:
        decoder: nn.Module = decoders[m]
        likelihood = getattr(decoder, "likelihood", None)
        if isinstance(likelihood, Columns):
            yield m, likelihood.columns


def _contexts_of(*programs: Callable[..., Any] | None) -> Iterator[tuple[Column, ...]]:
    """The covariates of each network that reads some, once for all that read the same."""
    seen: set[tuple[Column, ...]] = set()
    for program in programs:
        for module in program.modules() if isinstance(program, nn.Module) else ():
            own = module.features.columns if isinstance(module, Context) else None
            if own is not None and own not in seen:
                seen.add(own)
                yield own


def _compare(modality: str, model: tuple[Column, ...], data: tuple[Column, ...]) -> None:
    ours, theirs = {c.name for c in model}, {c.name for c in data}
    absent, extra = ([c.name for c in of if c.name not in other] for of, other in ((model, theirs), (data, ours)))
    if len(model) != len(data):
        lacks = f"; the data lack {absent[:5]}" if absent else ""
        more = f"; the model has no {extra[:5]}" if extra else ""
        raise ValueError(f"{modality}: the model has {len(model)} columns, the data {len(data)}{lacks}{more}. {_FIX}")
    for i, (own, other) in enumerate(zip(model, data, strict=True)):
        if own.name != other.name:
            order = "" if absent or extra else "; the order differs"
            raise ValueError(
                f"{modality}, column {i}: the model has {own.name!r}, the data {other.name!r}{order}. {_FIX}"
            )
        _same(f"{modality}, column {own.name!r}", own, other)


def _compare_context(model: tuple[Column, ...], known: Mapping[str, Column], ds: MultimodalDataset) -> None:
    for own in model:
        other = known.get(str(own.name))
        if other is not None:
            _same(f"context, column {own.name!r}", own, other)
        elif str(own.name) not in ds.data:
            raise ValueError(
                f"context: the model reads the column {own.name!r}, the data have {list(known)}. Fix: "
                "from_frames(frames, context=..., like=the training data)."
            )


def _same(where: str, own: Column, other: Column) -> None:
    for what in ("likelihood", "levels"):
        if getattr(own, what) != getattr(other, what):
            raise ValueError(
                f"{where}: the model has the {what} {getattr(own, what)!r}, the data {getattr(other, what)!r}. {_FIX}"
            )
