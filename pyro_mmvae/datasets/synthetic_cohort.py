"""A simulated cohort of three tables with gaps, columns of all kinds, covariates, and a known truth.
Layer: datasets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyro_mmvae._optional import optional_import
from pyro_mmvae.datasets.multimodal import MultimodalDataset

__all__ = ["Cohort", "synthetic_cohort"]

_LATENTS, _NOISE = 3, 0.6
_REAL = {"mrna": 12, "protein": 8, "clinical": 2}
_UNITS = {"mrna": (7.0, 1.5), "protein": (0.0, 0.8)}  # location and scale of their columns
_CLINICAL_UNITS = {"bmi": (27.0, 4.0), "systolic": (130.0, 15.0)}
_KINDS = ("crp", "lesions", "smoker", "stage", "histology")  # what else is in the clinical table
_SITES, _STAGES, _TYPES = ("Oslo", "Kyoto", "Lima"), ("I", "II", "III", "IV"), ("ductal", "lobular", "mixed")
_CUTS = np.array([-1.0, 0.3, 1.5])  # between stages
_TOTAL = 4.0  # of the negative binomial
_FEWER_THAN = 20


@dataclass(frozen=True, eq=False)
class Cohort:
    r"""
    Where a simulated cohort came from.

    With z ~ N(0, I) in three dimensions and :math:`c = ((age - 60) / 10, [Kyoto], [Lima])`, column j has the signal
    :math:`e_j = w_j^\top z + v_j^\top c`, and

    - real columns: :math:`x_j = a_j + u_j (e_j + s \epsilon)`, :math:`\epsilon \sim N(0, 1)`, s = 0.6;
    - ``crp``: :math:`\log x = \log 3 + 0.6 (e + s \epsilon)`;
    - ``lesions``: negative binomial with mean :math:`\exp(1.2 + 0.5 e)` and 4 failures;
    - ``smoker``: Bernoulli with logit :math:`1.5 e - 0.5`;
    - ``stage``: the number of cuts -1, 0.3, 1.5 below :math:`1.5 e + \epsilon`, with logistic :math:`\epsilon`;
    - ``histology``: categorical, with logits :math:`1.2 e_k` of a signal for each class.

    :ivar frames: the complete tables.
    :ivar context: ``age`` and ``site``.
    :ivar z: (N, 3) array.
    :ivar weights: W, signal to its (3,) row, as a DataFrame; ``effects``: V, of the covariates.
    :ivar location: a, of the real columns; ``unit``: u.
    :ivar noise: s.
    """

    frames: Mapping[str, Any]
    context: Any
    z: np.ndarray
    weights: Any
    effects: Any
    location: Any
    unit: Any
    noise: float

    def covariance(self) -> Any:  # pandas.DataFrame, shape (R, R)
        r"""
        Covariance of all real columns given the covariates: :math:`u_i u_j (w_i^\top w_j + s^2 [i = j])`.

        Example::

            >>> truth = synthetic_cohort(50).truth
            >>> truth.covariance().loc["gene_1", ["gene_2", "protein_1", "bmi"]].shape
            (3,)
        """
        pandas = optional_import("pandas", "tables")
        names = self.unit.index
        weights = self.weights.loc[names].to_numpy() * self.unit.to_numpy()[:, None]
        own = np.diag((self.noise * self.unit.to_numpy()) ** 2)
        return pandas.DataFrame(weights @ weights.T + own, index=names, columns=names)

    def mean(self) -> Any:  # pandas.DataFrame, shape (N, R)
        """Mean of all real columns given the covariates."""
        pandas = optional_import("pandas", "tables")
        names = self.unit.index
        signal = _design(self.context) @ self.effects.loc[names].to_numpy().T
        values = self.location.to_numpy() + self.unit.to_numpy() * signal
        return pandas.DataFrame(values, index=self.context.index, columns=names)


def synthetic_cohort(n: int = 300, seed: int = 0) -> MultimodalDataset:
    """
    A cohort of n patients in three tables of mixed types, with the gaps that cohorts have; made by
    :meth:`MultimodalDataset.from_frames`.

    ``mrna``: 12 real columns; ``protein``: 8 real ones; ``clinical``: ``bmi`` and ``systolic`` (real), ``crp``
    (positive), ``lesions`` (counts), ``smoker`` (bool), ``stage`` (ordered), ``histology`` (classes). Context: ``age``
    and ``site``. ``ds.truth`` is a :class:`Cohort`: the generating story, and the tables without gaps.

    All gaps are completely at random: a fifth of the patients has no mRNA, a third no protein, a twentieth nothing
    clinical (but everyone has something); of the cells that are there 2 % of the mRNA, 5 % of the protein and 8 % of
    the clinical ones are missing.

    Example::

        >>> ds = synthetic_cohort(200, seed=1)
        >>> ds.modalities, ds.covariates
        (('mrna', 'protein', 'clinical'), ('age', 'site'))
        >>> {c.name: c.likelihood for c in ds.frames.columns["clinical"][2:]}
        {'crp': 'log_normal', 'lesions': 'negative_binomial', 'smoker': 'bernoulli', 'stage': 'ordinal',
         'histology': 'categorical'}
        >>> ds.truth.frames["protein"].shape
        (200, 8)

    :param n: number of patients, at least 20.
    :raises ValueError: if there are fewer.
    """
    if n < _FEWER_THAN:
        raise ValueError(f"n: expected at least {_FEWER_THAN} patients, got {n}.")
    rng = np.random.default_rng(seed)
    truth = _complete(n, rng)
    frames = _with_gaps(truth.frames, rng)
    own = {"clinical": {"crp": "log_normal"}}
    ds = MultimodalDataset.from_frames(frames, context=truth.context, likelihoods=own)
    order = truth.context.index.get_indexer(ds.frames.index) if ds.frames is not None else np.arange(n)
    ds.truth = Cohort(
        {m: frame.iloc[order] for m, frame in truth.frames.items()},
        truth.context.iloc[order],
        truth.z[order],
        *(truth.weights, truth.effects, truth.location, truth.unit, truth.noise),
    )
    return ds


def _complete(n: int, rng: np.random.Generator) -> Cohort:
    """The story, without gaps."""
    pandas = optional_import("pandas", "tables")
    names = {m: [f"{stem}_{i + 1}" for i in range(_REAL[m])] for m, stem in (("mrna", "gene"), ("protein", "protein"))}
    units = {name: _UNITS[m] for m, own in names.items() for name in own} | _CLINICAL_UNITS
    signals = [*units, *_KINDS[:-1], *(f"histology: {t}" for t in _TYPES)]
    weights = pandas.DataFrame(rng.normal(0.0, 0.7, (len(signals), _LATENTS)), index=signals)
    effects = pandas.DataFrame(
        rng.normal(0.0, 0.3, (len(signals), 3)), index=signals, columns=["age", "Kyoto", "Lima"]
    )
    index = pandas.Index([f"P{i + 1:04d}" for i in range(n)], name="patient")
    site = pandas.Categorical.from_codes(rng.integers(0, 3, n), categories=list(_SITES))
    context = pandas.DataFrame({"age": rng.normal(60.0, 10.0, n).round(1), "site": site}, index=index)
    z = rng.normal(size=(n, _LATENTS))
    signal = z @ weights.to_numpy().T + _design(context) @ effects.to_numpy().T
    e = pandas.DataFrame(signal, index=index, columns=signals)
    location, unit = (pandas.Series({name: own[i] for name, own in units.items()}) for i in (0, 1))
    real = e[list(units)] + _NOISE * rng.normal(size=(n, len(units)))
    real = location + unit * real
    clinical = pandas.concat([real[list(_CLINICAL_UNITS)], _others(pandas, e, rng)], axis=1)
    frames = {"mrna": real[names["mrna"]], "protein": real[names["protein"]], "clinical": clinical}
    return Cohort(frames, context, z, weights, effects, location, unit, _NOISE)


def _others(pandas: Any, e: Any, rng: np.random.Generator) -> Any:  # pandas.DataFrame
    """The clinical columns that are not real."""
    n = len(e)
    mean = np.exp(1.2 + 0.5 * e["lesions"].to_numpy())
    stage = (1.5 * e["stage"].to_numpy() + rng.logistic(size=n))[:, None] > _CUTS
    logits = 1.2 * e[[f"histology: {t}" for t in _TYPES]].to_numpy()
    histology = (logits + rng.gumbel(size=logits.shape)).argmax(1)
    return pandas.DataFrame(
        {
            "crp": 3.0 * np.exp(0.6 * (e["crp"].to_numpy() + _NOISE * rng.normal(size=n))),
            "lesions": rng.negative_binomial(_TOTAL, _TOTAL / (_TOTAL + mean)),
            "smoker": rng.logistic(size=n) < 1.5 * e["smoker"].to_numpy() - 0.5,
            "stage": pandas.Categorical.from_codes(stage.sum(1), categories=list(_STAGES), ordered=True),
            "histology": pandas.Categorical.from_codes(histology, categories=list(_TYPES)),
        },
        index=e.index,
    )


def _design(context: Any) -> np.ndarray:  # shape: (N, 3)
    """The covariates as numbers."""
    site = context["site"].astype(str).to_numpy()
    return np.stack([(context["age"].to_numpy() - 60.0) / 10.0, site == _SITES[1], site == _SITES[2]], 1).astype(float)


def _with_gaps(frames: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Absent patients and missing cells, both completely at random; nobody is lost."""
    n = len(frames["clinical"])
    absent = {m: rng.random(n) < rate for m, rate in (("mrna", 0.2), ("protein", 1 / 3), ("clinical", 0.05))}
    absent["clinical"] &= ~(absent["mrna"] & absent["protein"])
    found = {}
    for m, rate in (("mrna", 0.02), ("protein", 0.05), ("clinical", 0.08)):
        frame = frames[m].copy()
        if m == "clinical":
            frame = frame.astype({"lesions": "Int64", "smoker": "boolean"})
        own = frame[~absent[m]]
        found[m] = own.mask(rng.random(own.shape) < rate)
    return found
