"""Networks and likelihoods chosen from the data.

Layer: nn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyro_mmvae.columns import Column
from pyro_mmvae.nn import likelihoods
from pyro_mmvae.nn.decoders import ConvDecoder, MLPDecoder
from pyro_mmvae.nn.encoders import ConvEncoder, EmbeddingEncoder, MLPEncoder
from pyro_mmvae.nn.likelihoods import Likelihood
from pyro_mmvae.nn.small import DropoutFamily, DropoutNormalHead, SmallDecoder
from pyro_mmvae.nn.tables import TableEncoder

__all__ = ["default_networks"]

_FEW_ROWS = 1000
_FEW_CLASSES = 33  # class numbers in a grid beyond these are taken for counts
_IMAGE_SIDE = 16
_NARROW = 64  # numbers in a row up to which a table gets one small layer; larger networks would ignore the latent
_PRECISION = 100.0  # of the prior on a small decoder's weights, for data of unit spread
_SHARP = 2.0  # taken off the log scale that experts start with


@dataclass(frozen=True)
class _Seen:
    """What the observed entries of a modality look like."""

    name: str
    values: Tensor  # shape: (N,), observed entries, flattened
    rows: Tensor  # shape: (R, *event), the rows without a missing entry
    shape: torch.Size
    num_rows: int  # with an observed entry
    total: int  # N
    partial: bool  # some rows are observed in part
    integer: bool  # the data type is an integer
    width: int  # numbers in a row, of all modalities together

    @property
    def few(self) -> bool:
        return self.num_rows < _FEW_ROWS

    @property
    def crowding(self) -> float:
        """
        Numbers in a row over rows to learn from, at most 1: how strongly few rows need dropout.

        With more numbers than rows the latent of a row can encode its noise, and loadings fit that. With many rows to
        a number it cannot, and dropout only blurs what is strong.
        """
        return min(1.0, self.width / max(self.num_rows, 1))

    @property
    def image(self) -> bool:
        return len(self.shape) == 3 and min(self.shape[1:]) >= _IMAGE_SIDE


@dataclass(frozen=True)
class _Choice:
    likelihood: Likelihood
    why: str
    num_classes: int | None = None  # class numbers or one-hot vectors: an embedding reads them
    transform: Callable[[Tensor], Tensor] | None = None


def _look(name: str, x: Tensor, mask: Tensor | None, width: int) -> _Seen:
    """Observed entries: finite, and True in the mask, which is (B,) or (B, *event)."""
    seen = torch.isfinite(x) if x.is_floating_point() else torch.ones_like(x, dtype=torch.bool)
    if mask is not None:
        if mask.dtype != torch.bool or mask.shape not in (x.shape, x.shape[:1]):
            raise ValueError(
                f"{name}: obs_mask must be bool of shape {tuple(x.shape[:1])} or {tuple(x.shape)}, "
                f"got {mask.dtype} {tuple(mask.shape)}."
            )
        seen = seen & mask.reshape(mask.shape + (1,) * (x.dim() - mask.dim()))
    flat = seen.reshape(len(x), -1)
    some, whole = flat.any(-1), flat.all(-1)
    integer = not x.is_floating_point() and x.dtype != torch.bool
    partial = bool((some & ~whole).any())
    return _Seen(name, x[seen], x[whole], x.shape[1:], int(some.sum()), len(x), partial, integer, width)


def _choose(seen: _Seen) -> _Choice:
    """The likelihood, and the sentence that says why."""
    x = seen.values
    if x.numel() == 0:
        return _Choice(likelihoods.Normal("learned"), "nothing is observed")
    if x.dtype == torch.bool:
        return _Choice(likelihoods.Bernoulli(), "the values are True or False")
    low, high = float(x.min()), float(x.max())
    if seen.integer:
        return _choose_integer(seen, int(low), int(high))
    whole = bool((x == x.round()).all())
    if whole and low >= 0 and high <= 1:
        return _choose_binary(seen)
    if whole and low >= 0:
        why = f"the values are counts, up to {high:g}; the encoder reads log(1 + x)"
        return _Choice(likelihoods.NegativeBinomial(), why, transform=torch.log1p)
    if low >= 0 and high <= 1 and seen.image:
        return _Choice(likelihoods.ContinuousBernoulli(), "gray levels between 0 and 1")
    return _Choice(likelihoods.Normal("learned"), _real(seen))


def _real(seen: _Seen) -> str:
    """Why a Normal, with what should be looked at."""
    low, high = float(seen.values.min()), float(seen.values.max())
    why = f"real numbers from {low:.3g} to {high:.3g}, scale learned per feature"
    spread = float(seen.values.double().std(correction=0))
    if not 0.1 <= spread <= 10:
        why += f"; their standard deviation is {spread:.3g}: standardize them"
    constant = int((seen.rows == seen.rows[:1]).flatten(1).all(0).sum()) if len(seen.rows) > 1 and seen.shape else 0
    return f"{why}; {constant} features are constant: drop them" if constant else why


def _choose_integer(seen: _Seen, low: int, high: int) -> _Choice:
    if low < 0:
        raise ValueError(
            f"{seen.name}: negative integers (down to {low}) are neither class numbers nor counts. "
            "Fix: mark missing labels in obs_mask, or make them floats if they are measurements."
        )
    classes = max(high + 1, 2)
    if not seen.shape or (len(seen.shape) == 1 and classes <= _FEW_CLASSES):
        return _Choice(likelihoods.Categorical(classes), f"class numbers 0 to {classes - 1}", num_classes=classes)
    why = f"integer counts, up to {high}; the encoder reads log(1 + x)"
    return _Choice(likelihoods.NegativeBinomial(), why, transform=torch.log1p)


def _choose_binary(seen: _Seen) -> _Choice:
    """Values 0 and 1: one-hot rows, or separate bits."""
    classes = seen.shape[-1] if seen.shape else 0
    if classes > 1 and len(seen.rows) > 0 and not seen.partial and bool((seen.rows.sum(-1) == 1).all()):
        return _Choice(likelihoods.OneHotCategorical(), f"one-hot vectors of {classes} classes", num_classes=classes)
    return _Choice(likelihoods.Bernoulli(), "the values are 0 or 1")


def _build(seen: _Seen, choice: _Choice, latent_dim: int) -> tuple[nn.Module, nn.Module, str]:
    lik = choice.likelihood
    if seen.few and isinstance(lik, likelihoods.Normal) and len(seen.shape) == 1:
        return _build_small(seen, choice, latent_dim)
    hidden, dropout = ((64,), 0.1) if seen.few else ((256, 256), 0.0)
    one_hot = isinstance(lik, likelihoods.OneHotCategorical)
    encoder: nn.Module
    if choice.num_classes is not None:
        grid = seen.shape[:-1] if one_hot else seen.shape
        encoder = EmbeddingEncoder(
            choice.num_classes,
            latent_dim,
            shape=grid,
            hidden=hidden,
            dropout=dropout,
            one_hot=one_hot,
            mask=seen.partial,
        )
    else:
        kind, layers = (ConvEncoder, hidden[:1]) if seen.image else (MLPEncoder, hidden)
        encoder = kind(
            seen.shape, latent_dim, hidden=layers, dropout=dropout, mask=seen.partial, transform=choice.transform
        )
    _sharpen(encoder.head)
    decoder: nn.Module
    if seen.image and choice.num_classes is None:
        decoder = ConvDecoder(latent_dim, seen.shape, likelihood=lik, hidden=hidden[:1])
    else:
        decoder = MLPDecoder(latent_dim, seen.shape, likelihood=lik, hidden=hidden)
    note = f"{lik.name}: {choice.why}; {type(encoder).__name__} and {type(decoder).__name__}, hidden {hidden}"
    note += f", dropout {dropout} for {seen.num_rows} rows" if seen.few else ""
    return encoder, decoder, note + _sees(seen)


def _build_small(seen: _Seen, choice: _Choice, latent_dim: int) -> tuple[nn.Module, nn.Module, str]:
    """Few rows of real numbers: linear networks."""
    spread = float(seen.values.double().std(correction=0)) if seen.values.numel() else 1.0
    decay = _PRECISION / seen.total / (spread**2 if spread > 0 else 1.0)
    strength = seen.crowding
    encoder = MLPEncoder(seen.shape, latent_dim, hidden=(), family=DropoutFamily(strength), mask=seen.partial)
    _sharpen(encoder.head)
    decoder = SmallDecoder(
        latent_dim, seen.shape, likelihood=choice.likelihood, weight_decay=decay, strength=strength
    )
    return encoder, decoder, f"{choice.likelihood.name}: {choice.why}; {_linear(seen, encoder, decoder)}"


def _build_table(
    seen: _Seen, columns: Sequence[Column], context: Sequence[Column], latent_dim: int
) -> tuple[nn.Module, nn.Module, str]:
    """A table: its cells keep their units, the networks standardize."""
    lik, given = likelihoods.Columns(columns), list(context) if len(context) else None
    kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(c.likelihood for c in columns).items())
    decoder: MLPDecoder
    if seen.few:
        family = DropoutFamily(seen.crowding)
        encoder = TableEncoder(columns, latent_dim, hidden=(), family=family, mask=seen.partial, context=given)
        _sharpen(encoder.head)
        decay = _PRECISION / seen.total
        decoder = SmallDecoder(
            latent_dim, seen.shape, likelihood=lik, weight_decay=decay, context=given, strength=seen.crowding
        )
        return encoder, decoder, f"{kinds}; {_linear(seen, encoder, decoder)}"
    hidden = (64,) if seen.width <= _NARROW else (256, 256)
    encoder = TableEncoder(columns, latent_dim, hidden=hidden, mask=seen.partial, context=given)
    _sharpen(encoder.head)
    decoder = MLPDecoder(latent_dim, seen.shape, likelihood=lik, hidden=hidden, context=given)
    return encoder, decoder, f"{kinds}; TableEncoder and MLPDecoder, hidden {hidden}{_sees(seen)}"


def _linear(seen: _Seen, encoder: nn.Module, decoder: SmallDecoder) -> str:
    """The networks for few rows."""
    names = f"{type(encoder).__name__} and {type(decoder).__name__}"
    why = f"dropout (strength {seen.crowding:.2g}) and weight decay {decoder.weight_decay:.3g} for {seen.num_rows} rows"
    return f"{names}, linear with {why}{_sees(seen)}"


def _sees(seen: _Seen) -> str:
    return ", the encoder sees which features are missing" if seen.partial else ""


def _sharpen(head: nn.Module) -> None:
    """
    Let experts start with a scale around 0.14 instead of 1.

    An expert as wide as the prior says so little that decoders first learn to do without it, and products with the
    prior as an expert then stay there (posterior collapse).
    """
    with torch.no_grad():
        raw = head.log_scale if isinstance(head, DropoutNormalHead) else head.linear.bias.chunk(2)[1]  # type: ignore[union-attr,operator]
        raw.sub_(_SHARP)


def default_networks(
    data: Mapping[str, Tensor],  # shapes: (B, *event)
    latent_dim: int,
    *,
    obs_mask: Mapping[str, Tensor | None] | None = None,  # shapes: (B,) or (B, *event), bool, True = observed
    columns: Mapping[str, Sequence[Column]] | None = None,
    context: Sequence[Column] = (),
) -> tuple[dict[str, nn.Module], dict[str, nn.Module], dict[str, str]]:
    r"""
    Encoders, decoders with likelihoods, and one line per modality that says what was picked and why.

    Only observed, finite entries are looked at. Integers: (B,) and grids of at most 33 class numbers are Categorical,
    other arrays counts. Floats: only 0 and 1 is Bernoulli, or OneHotCategorical where every vector along the last
    dimension sums to 1; whole numbers are counts (NegativeBinomial); images in [0, 1] ContinuousBernoulli; all else
    Normal with a scale learned per feature. Images of 16x16 or more get convolutions; class numbers and one-hot
    vectors embeddings. Experts start sharp, with a scale around 0.14. Where rows are observed in part, the encoder is
    fed the mask. Modalities named in ``columns`` are tables: :class:`TableEncoder`, :class:`Columns`.

    Below 1,000 observed rows tables and vectors of real numbers get linear networks
    (:class:`~pyro_mmvae.nn.DropoutNormalHead` and :class:`~pyro_mmvae.nn.SmallDecoder`, whose weights have the prior
    :math:`\mathcal N(0, v / 100)` with v the variance of the data, 1 for tables), everything else one hidden layer of
    64 and dropout 0.1. From there on tables get one hidden layer of 64 where a row has at most 64 numbers, over all
    modalities, and two of 256 beyond. The dropout of linear networks has the strength :math:`\min(1, P / N)`, for P
    numbers in a row of all modalities together and N rows with something of this one: it is full where there are more
    numbers than rows, and fades where rows alone tell signal from noise.

    Example::

        >>> data = {"label": torch.arange(5), "bits": torch.eye(5)[:, :3]}
        >>> encoders, decoders, notes = default_networks(data, 2)
        >>> notes["label"]
        'Categorical: class numbers 0 to 4; EmbeddingEncoder and MLPDecoder, hidden (64,), dropout 0.1 for 5 rows'
        >>> decoders["bits"].likelihood.name
        'Bernoulli'

    :param data: modalities by name; NaN is missing.
    :param latent_dim: width of the latent, as encoders give it and decoders take it.
    :param obs_mask: what is observed; None, or an absent name, is everything.
    :param columns: of the modalities that are tables (B, P), fitted to their cells.
    :param context: columns of the covariates, which the networks of tables read.
    :raises ValueError: for masks of another shape, integers below 0, or tables of another width than their columns.
    :raises TypeError: if a modality is not a tensor.
    """
    encoders, decoders, notes = {}, {}, {}
    width = sum(x[0].numel() for x in data.values() if isinstance(x, Tensor) and x.dim() > 0 and len(x) > 0)
    for name, x in data.items():
        if not isinstance(x, Tensor) or x.dim() == 0:
            raise TypeError(f"{name}: expected a tensor of shape (B, *event), got {type(x).__name__}.")
        seen = _look(name, x, None if obs_mask is None else obs_mask.get(name), width)
        if columns is not None and name in columns:
            if tuple(seen.shape) != (len(columns[name]),):
                raise ValueError(
                    f"{name}: expected cells (B, {len(columns[name])}), one per column, got {tuple(x.shape)}."
                )
            built = _build_table(seen, columns[name], context, latent_dim)
        else:
            built = _build(seen, _choose(seen), latent_dim)
        encoders[name], decoders[name], notes[name] = built
    return encoders, decoders, notes
