"""A guide of two parts: one for what a data set has once, one for what every sample has.

Layer: guides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pyro import poutine
from torch import nn

from pyro_mmvae.masks import ObsMask
from pyro_mmvae.stories import ObservedModel

__all__ = ["WithGlobals"]


class WithGlobals(nn.Module):
    r"""
    The guide of a model with global latents:

    .. math:: q(\mu, z_{1:N} \mid x) = q(\mu) \prod_n q(z_n \mid x_{n, S_n})

    Semantically equivalent to a function that calls one guide after the other. Objectives draw and score the global
    sites once per data set, outside the plate ``data``, its scale and any logarithm, however many terms and particles
    (once for each kind of gate, in tables whose terms have different ones):

    .. math:: E_{q(\mu)} \Bigl[ \log \frac{p(\mu)}{q(\mu)} + \frac{N}{B} \sum_{n=1}^B \mathcal{L}_n(\mu) \Bigr]
        \le \log p(x_O)

    with :math:`\mathcal{L}_n(\mu)` the bound of sample n given the global draw, importance weighted or not. (Stock
    Pyro's ``RenyiELBO`` weighs whole batches, once a site lies outside the plate.) Verbs draw the global sites afresh
    for every particle. A library guide as the second part takes its data by name, so the model may have other data as
    well. Its story is that of one sample, with a prior of its own in place of what depends on global sites.

    AutoGuides make their parameters when they are first run: call the guide once, ``guide(data, obs_mask)``, before
    ``load`` or an optimizer of torch's asks for them. ``fit`` does so itself, and stock ``SVI`` does not need it.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoNormal
        >>> import pyro_mmvae as mm
        >>> def story(mu=torch.tensor(0.0)):
        ...     z = pyro.sample("z", dist.Normal(mu.unsqueeze(-1), 1.0).to_event(1))
        ...     pyro.sample("x", dist.Normal(z, 0.5).to_event(1))
        >>> def model(data, obs_mask=None):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(data["x"])), mm.handlers.observe(data, obs_mask, ["x"]):
        ...         story(mu)
        >>> amortized = mm.guides.Product(mm.observe(story, ["x"]), {"z": {"x": mm.nn.MLPEncoder(1, 1)}})
        >>> guide = WithGlobals(AutoNormal(pyro.poutine.block(model, expose=["mu"])), amortized)
        >>> draws = mm.inference.predict(model, guide, {"x": torch.zeros(3, 1)}, return_latents=True)
        >>> {name: tuple(x.shape) for name, x in draws.items()}
        {'x': (10, 3, 1), 'mu': (10,), 'z': (10, 3, 1)}

    :param of_data_set: guide of the sites outside the plate ``data``, e.g. any AutoGuide over
        ``poutine.block(model, expose=[...])``.
    :param of_samples: guide of the sites inside it, e.g. one of :mod:`pyro_mmvae.guides`.
    """

    def __init__(self, of_data_set: Callable[..., Any], of_samples: Callable[..., Any]) -> None:
        super().__init__()
        for what, part in (("of_data_set", of_data_set), ("of_samples", of_samples)):
            if not callable(part):
                raise TypeError(f"{what}: expected a guide, a callable, got {type(part).__name__}.")
        self.of_data_set, self.of_samples = of_data_set, of_samples

    @property
    def vectorized(self) -> bool:
        """Whether masks may have leading dimensions."""
        return bool(getattr(self.of_samples, "vectorized", False))

    @property
    def observed(self) -> ObservedModel | None:
        """The observed story of a library guide."""
        return getattr(self.of_samples, "observed", None)

    def encode(self, data: Any, obs_mask: Any) -> Any:
        """The experts of a library guide, once per step; None for other guides."""
        encode = getattr(self.of_samples, "encode", None)
        return None if encode is None else encode(data, obs_mask)

    def register(self) -> None:
        """Make the parameters of library guides known to Pyro's store, for stock SVI."""
        for part in (self.of_data_set, self.of_samples):
            register = getattr(part, "register", None)
            if register is not None:
                register()

    def forward(self, data: Any = None, obs_mask: Any = None, **options: Any) -> None:
        masks = _of_batch(obs_mask)
        if getattr(self.of_data_set, "prototype_trace", self) is None:  # an AutoGuide's parameters, made unseen
            with poutine.block():
                self.of_data_set(data, masks)
        self.of_data_set(data, masks)
        self.of_samples(self._own(data), self._own(obs_mask), **options)

    def _own(self, given: Any) -> Any:
        """What the story of a library guide knows of."""
        story = self.observed
        if story is None or type(given) is not dict:
            return given
        known = (*story.modalities, *story.covariates)
        return {name: x for name, x in given.items() if name in known}


def _of_batch(obs_mask: Any) -> Mapping[str, Any] | None:
    """Masks as they come at the door, without the leading dimensions of a table of terms."""
    if not isinstance(obs_mask, ObsMask):
        return obs_mask  # type: ignore[no-any-return]
    masks = {m: mask[(0,) * (obs_mask.rows[m].dim() - 1)] for m, mask in obs_mask.items()}
    return ObsMask(masks, obs_mask.event_dims).door_form()
