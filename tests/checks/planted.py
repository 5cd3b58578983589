"""Which mistake breaks which law, what the finding names, and the healthy twin of each.

Test layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pyro_mmvae.handlers import marginalize_missing
from tests.checks.mistakes import (
    BatchNorm,
    Centered,
    Detached,
    Double,
    FactorMean,
    FromTheLeft,
    FromTheRight,
    Guide,
    IgnoresMask,
    InPlace,
    KeepsAList,
    LayerNorm,
    LogNormalGuide,
    MeanOverFeatures,
    Misspelled,
    Model,
    ModelIgnoresMask,
    NoEvent,
    NoPlate,
    NoPrior,
    OneColumn,
    OneColumnRight,
    OtherPlate,
    Rates,
    ReadsHidden,
    RootAtZero,
    RootInside,
    Seeds,
    Subsampled,
    SubsampledGuide,
    TwoLatents,
    TwoLatentsGuide,
    Unmarginalized,
    hidden_network,
    one_name,
)


def pair(model: type[Model], guide: type[Guide]) -> Callable[[], tuple[Any, Any]]:
    """A fresh pair."""
    return lambda: (model(), guide())


@dataclass(frozen=True)
class Planted:
    """
    A mistake.

    :ivar sick: makes the pair that has it. :ivar healthy: makes its twin.
    :ivar law: the law that it breaks. :ivar where: what the finding names.
    """

    name: str
    sick: Callable[[], tuple[Any, Any]]
    law: str
    where: Mapping[str, Any] = field(default_factory=dict)
    healthy: Callable[[], tuple[Any, Any]] = field(default_factory=lambda: pair(Model, Guide))


def planted() -> list[Planted]:
    """All of them."""
    content = "masked content is irrelevant"
    plate = "one data plate"
    return [
        Planted("a latent missing in the guide", pair(TwoLatents, Guide), "sites match",
                {"program": "guide", "site": "scale_of_z"}, pair(TwoLatents, TwoLatentsGuide)),
        Planted("a stray latent in the guide", pair(Model, Misspelled), "sites match",
                {"program": "guide", "site": "Z"}),
        Planted("native obs_mask", pair(Unmarginalized, Guide), "sites match",
                {"site": "x_unobserved", "modality": "x"}, lambda: (marginalize_missing(Unmarginalized()), Guide())),
        Planted("a loss in place of a likelihood", pair(FactorMean, Guide), "sites match", {"modality": "y"}),
        Planted("to_event forgotten", pair(NoEvent, Guide), "event dimensions", {"program": "model", "site": "y"}),
        Planted("a trailing dimension of one", pair(OneColumn, Guide), "event dimensions",
                {"program": "model", "site": "y"}, pair(OneColumnRight, Guide)),
        Planted("no plate", pair(Model, NoPlate), plate, {"program": "guide", "site": "z"}),
        Planted("another plate", pair(Model, OtherPlate), plate, {"program": "guide"}),
        Planted("the model alone is subsampled", pair(Subsampled, Guide), plate,
                {"program": "guide", "site": "z"}, pair(Subsampled, SubsampledGuide)),
        Planted("indexing from the left", pair(FromTheLeft, Guide), "particles vectorize",
                {"program": "model"}, pair(FromTheRight, Guide)),
        Planted("the guide encodes hidden cells", pair(Model, ReadsHidden), content,
                {"program": "guide", "modality": "x"}),
        Planted("the guide ignores obs_mask", pair(Model, IgnoresMask), content,
                {"program": "guide", "site": "z", "modality": "x"}),
        Planted("the model ignores obs_mask", pair(ModelIgnoresMask, Guide), "hidden is not scored",
                {"program": "model", "site": "x", "modality": "x"}),
        Planted("BatchNorm", pair(Model, BatchNorm), "rows are independent",
                {"program": "guide", "site": "z"}, pair(Model, LayerNorm)),
        Planted("centered by the batch", pair(Model, Centered), "rows are independent",
                {"program": "guide", "site": "z"}),
        Planted("a network in the closure", lambda: hidden_network(registered=False), "parameters are registered",
                {"program": "model", "parameter": "decoder.weight"}, lambda: hidden_network(registered=True)),
        Planted("networks in a list", pair(Model, KeepsAList), "parameters are registered",
                {"program": "guide", "parameter": "networks[0].weight"}),
        Planted("two networks under one name", lambda: one_name(clashing=True), "parameters are registered",
                {"parameter": "decoder$$$weight"}, lambda: one_name(clashing=False)),
        Planted("no answer to nothing", pair(Model, NoPrior), "guide answers every mask",
                {"program": "guide"}),
        Planted("a root at zero", pair(Model, RootAtZero), "gradients are finite",
                {"program": "guide", "parameter": "guide.log_weights"}, pair(Model, RootInside)),
        Planted("a Normal for a Gamma", pair(Rates, Guide), "supports match",
                {"program": "guide", "site": "z"}, pair(Rates, LogNormalGuide)),
        Planted("a mean over features", pair(MeanOverFeatures, Guide), "likelihoods are whole",
                {"program": "model", "site": "x", "modality": "x"}),
        Planted("data changed in place", pair(Model, InPlace), "state is left as found",
                {"program": "guide", "modality": "x"}),
        Planted("a seed inside", pair(Model, Seeds), "state is left as found", {"program": "guide"}),
        Planted("a detached expert", pair(Model, Detached), "gradients reach every parameter",
                {"program": "guide", "parameter": "guide.encoders.y.weight"}),
        Planted("two dtypes", pair(Model, Double), "devices and dtypes agree",
                {"parameter": "guide.encoders.x.weight"}),
    ]  # fmt: skip
