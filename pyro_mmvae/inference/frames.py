"""The verbs on data sets made from DataFrames: what comes back has their index, columns, dtypes and units.

Layer: inference.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor

from pyro_mmvae._optional import optional_import
from pyro_mmvae.datasets import Frames, MultimodalDataset
from pyro_mmvae.inference import clusters as _clusters
from pyro_mmvae.inference import inference_data as _inference_data
from pyro_mmvae.inference import log_likelihood as _log_likelihood
from pyro_mmvae.inference import posterior as _posterior
from pyro_mmvae.inference import predict as _predict
from pyro_mmvae.inference._batch import evaluation, known_names, positive, prepared
from pyro_mmvae.inference._rows import in_rows
from pyro_mmvae.inference._run import encode, local_latents, run_guide
from pyro_mmvae.inference.completed import Completed, Gaps
from pyro_mmvae.inference.posterior_table import PosteriorTable
from pyro_mmvae.inference.schema import check_columns
from pyro_mmvae.stories import ObservedModel

__all__ = [
    "PosteriorTable",
    "has_frames",
    "impute",
    "log_likelihood",
    "posterior",
    "predict",
    "predict_clusters",
    "to_inference_data",
]

Program = Callable[..., Any]

_NUMBERS = 2**27  # draws that are made at once: half a gigabyte in single precision


def has_frames(data: object) -> bool:
    """Whether this is a data set made by :meth:`~pyro_mmvae.MultimodalDataset.from_frames`."""
    return isinstance(data, MultimodalDataset) and data.frames is not None


def _frames_of(ds: MultimodalDataset) -> Frames:
    if not isinstance(ds, MultimodalDataset) or ds.frames is None:
        raise TypeError(
            f"expected a dataset made by MultimodalDataset.from_frames, got {type(ds).__name__}. Fix: for tensors the "
            "functions of the same names in pyro_mmvae.inference."
        )
    return ds.frames


def impute(
    model: Program,
    guide: Program,
    ds: MultimodalDataset,
    *,
    num_samples: int = 100,
    given: Collection[str] | None = None,
    target: Collection[str] | None = None,
    batch_size: int = 512,
    progress: bool = True,
) -> Completed:
    """
    The tables with their gaps filled: :func:`pyro_mmvae.inference.impute` for data sets made from DataFrames.

    :param num_samples: draws per gap, from which standard deviations and intervals are taken.
    :param given: modalities to condition on and to keep; default: all that is observed.
    :param target: modalities to complete; default: all.
    :param batch_size: rows that are run at a time, at most; fewer where the tables are wide.
    :param progress: a progress bar, where there are several batches.
    :raises ValueError: for unknown names, columns that are not those the model was made for, or a table it lacks.
    """
    _frames_of(ds)
    given = known_names("given", given, ds.modalities)
    kept = {
        m: mask.reshape(mask.shape + (1,) * (2 - mask.dim())).expand_as(ds.data[m])
        if given is None or m in given
        else torch.zeros_like(ds.data[m], dtype=torch.bool)
        for m, mask in ds.obs_mask.items()
    }
    return _completed(model, guide, ds, kept, num_samples, given, target, batch_size, progress)


def predict(
    model: Program,
    guide: Program,
    ds: MultimodalDataset,
    *,
    num_samples: int = 100,
    given: Collection[str] | None = None,
    target: Collection[str] | None = None,
    batch_size: int = 512,
    progress: bool = True,
) -> Completed:
    """As :func:`impute`, with every cell predicted, observed ones too."""
    _frames_of(ds)
    kept = {m: torch.zeros_like(ds.data[m], dtype=torch.bool) for m in ds.modalities}
    return _completed(model, guide, ds, kept, num_samples, given, target, batch_size, progress)


def _completed(
    model: Program,
    guide: Program,
    ds: MultimodalDataset,
    kept: dict[str, Tensor],  # each shape: (N, P), bool
    num_samples: int,
    given: Collection[str] | None,
    target: Collection[str] | None,
    batch_size: int,
    progress: bool,
) -> Completed:
    if not isinstance(num_samples, int):
        raise TypeError(f"num_samples: expected a whole number, got {num_samples!r}.")
    width = num_samples * sum(ds.data[m].shape[1] for m in ds.modalities)
    size = min(positive("batch_size", batch_size), max(_NUMBERS // max(width, 1), 1))
    check_columns(model, ds, guide, whole=target is None)
    own: dict[str, Any] = {"num_samples": positive("num_samples", num_samples), "given": given, "target": target}
    found: dict[str, list[Gaps]] = {}
    for rows in _blocks(model, ds, size, "imputing", progress):
        part = ds[rows]
        drawn = _predict.predict(model, guide, part, **own)
        chosen = {m: ~kept[m][rows] for m in drawn}
        draws = {m: x[:, chosen[m]].cpu() for m, x in drawn.items()}
        del drawn
        means = _predict.predict(model, guide, part, noise=False, **own)
        for m, gaps in chosen.items():
            found.setdefault(m, []).append(Gaps(gaps.cpu(), draws[m], means[m].mean(0)[gaps].cpu()))
    return Completed(_frames_of(ds), {m: Gaps.joined(parts) for m, parts in found.items()})


def posterior(
    model: Program,
    guide: Program,
    ds: MultimodalDataset,
    *,
    latents: str | None = None,
    batch_size: int = 512,
    progress: bool = True,
    **options: Any,
) -> Any:  # PosteriorTable, batch_shape: (N,); or {site: such a table}
    """q(z | x_given) of each row, with ``to_frame()``: :func:`pyro_mmvae.inference.posterior`."""
    index = _frames_of(ds).index
    check_columns(model, ds, guide)
    parts: list[dict[str, Any]] = []
    for rows in _blocks(model, ds, batch_size, "posterior", progress):
        found = _posterior.posterior(model, guide, ds[rows], latents=latents, batch_size=batch_size, **options)
        parts.append(found if latents == "all" else {"": found})
    tables = {}
    for site, first in parts[0].items():
        per_row = tuple(first.batch_shape[-1:]) == (min(batch_size, len(ds)),) or len(parts) == 1
        q = in_rows([p[site] for p in parts]) if per_row else first  # a latent of the whole data set
        own = _shared_latent(model, guide, ds) if latents is None else latents
        tables[site] = PosteriorTable(q, index, site if latents == "all" else own)
    return tables if latents == "all" else tables[""]


def _shared_latent(model: Program, guide: Program, ds: MultimodalDataset) -> str:
    """The name of the guide's only shared latent."""
    rows = ds[:1] if isinstance(model, ObservedModel) else ds
    with evaluation(model, guide):
        batch = prepared(model, guide, rows, None)
        found = local_latents(run_guide(batch, batch.obs_mask, None, encode(batch, batch.obs_mask)))
    private = getattr(model, "private", {})
    return next(s for s, site in found.items() if s not in private and "private_to" not in site["infer"])


def log_likelihood(
    model: Program,
    guide: Program,
    ds: MultimodalDataset,
    *,
    batch_size: int = 512,
    progress: bool = True,
    **options: Any,
) -> Any:  # pandas.Series of N values, nats
    r"""
    :func:`pyro_mmvae.inference.log_likelihood` as a Series; with ``diagnostics=True`` a DataFrame.

    Densities are per unit of the columns: in millimeters instead of meters, :math:`\log 1000` less for each real cell
    that is scored. Counts and classes have probabilities, which have no units.
    """
    pandas, index = optional_import("pandas", "tables"), _frames_of(ds).index
    check_columns(model, ds, guide)
    parts = [
        _log_likelihood.log_likelihood(model, guide, ds[rows], batch_size=batch_size, **options)
        for rows in _blocks(model, ds, batch_size, "log-likelihood", progress)
    ]
    if not isinstance(parts[0], Tensor):
        fields = ("value", "standard_error", "ess", "pareto_k")
        columns = {f: torch.cat([getattr(p, f) for p in parts]).cpu().numpy() for f in fields}
        return pandas.DataFrame(columns, index=index)
    return pandas.Series(torch.cat(parts).cpu().numpy(), index=index, name="log_likelihood")


def predict_clusters(
    model: Program,
    guide: Program,
    ds: MultimodalDataset,
    *,
    batch_size: int = 512,
    progress: bool = True,
    **options: Any,
) -> Any:  # pandas.Series of N numbers; with a DataFrame (N, C) beside
    """
    :func:`pyro_mmvae.inference.predict_clusters` as a Series; with ``return_probabilities=True`` and a DataFrame.
    """
    pandas, index = optional_import("pandas", "tables"), _frames_of(ds).index
    check_columns(model, ds, guide)
    parts = []
    for rows in _blocks(model, ds, batch_size, "clusters", progress):
        found = _clusters.predict_clusters(model, guide, ds[rows], batch_size=batch_size, **options)
        parts.append(found if isinstance(found, tuple) else (found,))
    clusters, *more = (torch.cat(own).cpu().numpy() for own in zip(*parts, strict=True))
    series = pandas.Series(clusters, index=index, name="cluster")
    return (series, pandas.DataFrame(more[0], index=index)) if more else series


def to_inference_data(model: Program, guide: Program, ds: MultimodalDataset, **options: Any) -> Any:
    """
    :func:`pyro_mmvae.inference.to_inference_data`, with row ids and column names as coordinates: dimensions ``sample``
    and ``<modality>_dim_0``, or as ``dims`` names them.
    """
    index, columns = _frames_of(ds).index, _frames_of(ds).columns
    check_columns(model, ds, guide)
    dims, given = options.get("dims"), options.pop("coords", None)
    names = {m: f"{m}_dim_0" if dims is None or m not in dims else dims[m][0] for m in columns}
    labels = {name: [c.name for c in columns[m]] for m, name in names.items()}
    rows = ["/".join(map(str, row)) for row in index] if index.nlevels > 1 else list(index)
    coords = {"sample": rows, **labels, **({} if given is None else given)}
    return _inference_data.to_inference_data(model, guide, ds, coords=coords, **options)


def _blocks(model: Program, ds: MultimodalDataset, size: int, what: str, progress: bool) -> Iterator[slice]:
    """
    Rows, a block at a time, under a progress bar where there are several; a model that opens its own plates gets all
    rows at once.
    """
    positive("batch_size", size)
    starts = range(0, len(ds), size if isinstance(model, ObservedModel) else len(ds))
    bar = optional_import("tqdm").tqdm(starts, desc=what, unit="batch", disable=not progress or len(starts) == 1)
    for start in bar:
        yield slice(start, start + starts.step)
