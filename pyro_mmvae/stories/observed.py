"""A story of one sample made into a Pyro model of a data set in which anything may be missing.

Layer: stories.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_mmvae.handlers.observe import ObserveMessenger
from pyro_mmvae.handlers.registration import Registered
from pyro_mmvae.masks import Data, ObsMask
from pyro_mmvae.stories.door import Door
from pyro_mmvae.stories.story import Story

__all__ = ["ObservedModel", "data_plate", "observe"]


def data_plate(batch: int, size: int | None, device: torch.device | None = None) -> pyro.plate:
    """The plate ``data`` at dim -1; with ``size`` its densities are scaled by size / batch."""
    if size is None or size == batch:
        return pyro.plate("data", batch, dim=-1)
    return pyro.plate("data", size, subsample=torch.arange(batch, device=device), dim=-1)


class ObservedModel(nn.Module):
    """
    The Pyro model ``model(data, obs_mask, n)`` of a story; made by :func:`observe`.

    :ivar story: the story as an ``nn.Module``.
    :ivar modalities: names of the observed sites.
    :ivar private: latent site -> the modality it is private to.
    :ivar door: checks and fills what comes from outside; guides share it.
    """

    def __init__(
        self,
        story: Story,
        modalities: Sequence[str],
        private: Mapping[str, str],
        draw: Collection[str],
        size: int | None,
    ) -> None:
        super().__init__()
        self.story, self.modalities = story, tuple(modalities)
        self.private, self.draw, self.size = dict(private), tuple(draw), size
        self.door = Door(story, modalities)
        self.registered = Registered("model")
        for what, names in (("private", self.private.values()), ("draw", self.draw)):
            unknown = set(names) - set(modalities)
            if unknown:
                raise ValueError(f"{what}: {sorted(unknown)} are no modalities; known are {list(modalities)}.")

    @property
    def covariates(self) -> tuple[str, ...]:
        """Names of the story's arguments."""
        return self.story.covariates

    def prepare(
        self,
        data: Mapping[str, Tensor | None] | None = None,
        obs_mask: Mapping[str, Tensor | None] | None = None,
        n: int | None = None,
    ) -> tuple[Data, ObsMask]:
        """Check and fill a batch once; the result passes every later call unchecked."""
        return self.door(data, obs_mask, n)

    def register(self) -> None:
        """Make the parameters known to Pyro's store under a name of this object's own, for stock SVI."""
        self.registered(self.story)

    def forward(
        self,
        data: Mapping[str, Tensor | None] | None = None,
        obs_mask: Mapping[str, Tensor | None] | None = None,
        n: int | None = None,
    ) -> Any:
        self.register()
        data, obs_mask = self.prepare(data, obs_mask, n)
        given = {name: data[name] for name in self.covariates if name in data}
        device = next(iter(data.values())).device
        with (
            data_plate(data.size, self.size, device),
            ObserveMessenger(data, obs_mask, self.modalities, private=self.private, draw=self.draw),
        ):
            return self.story(**given)


def observe(
    story: Callable[..., Any],
    modalities: Sequence[str],
    *,
    private: Mapping[str, str] | None = None,
    draw: Collection[str] = (),
    size: int | None = None,
    modules: Mapping[str, nn.Module] | None = None,
) -> ObservedModel:
    r"""
    Condition a generative story on data in which any modality of any sample may be missing.

    .. math:: p(x_O) = \int p(z) \prod_{m \in O} p(x_m \mid z) \, dz, \qquad O = \{m : \text{obs\_mask}_m\}

    The story is a Pyro program of one sample: latent sites, then one site per modality; its arguments are covariates,
    taken from ``data``, always complete, never scored. The result is a Pyro model ``model(data=None, obs_mask=None,
    n=None)`` that opens the plate ``data`` and conditions each modality where it is observed. Unobserved entries are
    drawn in prediction and left out in training. A key of ``data`` that is neither modality nor covariate is an error;
    an absent or None modality is missing for all rows.

    Semantically equivalent to writing, for every modality, ``with poutine.mask(mask=obs_mask[m]): pyro.sample(m, fn,
    obs=data[m])`` after replacing unobserved entries by a constant.

    Example::

        >>> import pyro.distributions as dist
        >>> def story():
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("a", dist.Normal(z, 1.0))
        ...     pyro.sample("b", dist.Poisson(z.exp()))
        >>> model = observe(story, modalities=("a", "b"))
        >>> trace = pyro.poutine.trace(model).get_trace({"a": torch.zeros(3)})  # b is missing for all rows
        >>> trace.nodes["b"]["mask"].tolist()
        [False, False, False]

    :param story: an ``nn.Module`` whose ``forward`` is the program, or a function (then see ``modules``).
    :param modalities: names of the observed sites.
    :param private: latent site -> the modality it is private to, e.g. ``{"z_rna": "rna"}``. Declared, never guessed.
    :param draw: modalities whose unobserved entries are drawn (reparametrized, unscored) in training, for stories in
        which a later site depends on them.
    :param size: number of samples in the whole data set: the plate's scale becomes size / batch.
    :param modules: networks that a plain function uses.
    :raises ValueError: for unknown or reserved names and for networks hidden in a closure.
    """
    program = story if isinstance(story, Story) else Story(story, modules)
    return ObservedModel(program, modalities, {} if private is None else private, draw, size)
