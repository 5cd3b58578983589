"""A multimodal VAE: a model, a guide, an objective, and the verbs on top of them.

Layer: vae, above inference and training.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from pyro.infer import ELBO as PyroELBO
from torch import Tensor, nn

from pyro_mmvae import inference, io
from pyro_mmvae.columns import fitted
from pyro_mmvae.nn import default_networks, register_function
from pyro_mmvae.objectives import ELBO

__all__ = ["MultimodalVAE"]

Masks = Mapping[str, Tensor | None] | None
Names = Collection[str] | None


class MultimodalVAE(nn.Module):
    """
    A Pyro model, a guide that answers every mask, and an objective.

    All verbs take data in which anything may be missing; ``given`` restricts what they condition on, ``target``
    what they compute. They are thin: each calls the function of the same name in :mod:`pyro_mmvae.inference`, which
    works for any pair of programs. A data set made from DataFrames is answered in DataFrames, by the functions of
    :mod:`pyro_mmvae.inference.frames`.

    Example::

        >>> import torch, pyro, pyro.distributions as dist
        >>> import pyro_mmvae as mm
        >>> def story():
        ...     z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...     pyro.sample("x", dist.Normal(z, 1.0).to_event(1))
        >>> model = mm.observe(story, ("x",))
        >>> vae = MultimodalVAE(model, mm.guides.Product(model, {"x": mm.nn.MLPEncoder(2, 2)}))
        >>> vae.posterior({"x": torch.zeros(3, 2)}).mean.shape
        torch.Size([3, 2])

    :param model: ``model(data, obs_mask, n)``, made by :func:`pyro_mmvae.observe`.
    :param guide: ``guide(data, obs_mask)``, a library guide or any Pyro guide.
    :param objective: a ``pyro.infer.ELBO``; default: :class:`pyro_mmvae.ELBO`.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        objective: PyroELBO | None = None,
    ) -> None:
        super().__init__()
        self.model, self.guide = model, guide
        self.objective = ELBO() if objective is None else objective
        self.notes: dict[str, str] = {}

    @classmethod
    def for_data(
        cls, data: Any, latent_dim: int, obs_mask: Masks = None, *, private_dim: int | None = None, **options: Any
    ) -> MultimodalVAE:
        """
        Default networks and likelihoods, picked from the data; ``vae.notes`` says which and why.

        For a data set made from DataFrames: of its columns, whose location and scale are those of its observed cells,
        and of its context. Below 1,000 rows tables get linear networks with dropout and weight decay; methods that
        train on subsets (MoPoE, MMVAE, MVAE) then predict one table from another best.

        :param data: a dataset, or modality -> Tensor.
        :param latent_dim: size of the shared latent.
        :param private_dim: size of a private latent of every modality, for methods that have them.
        :param options: options of the method.
        """
        if cls is MultimodalVAE:
            raise TypeError("for_data needs a method. Fix: e.g. pyro_mmvae.MVAE.for_data(data, latent_dim=16).")
        modalities = getattr(data, "modalities", None)
        tensors = data if modalities is None else {m: data.data[m] for m in modalities}
        masks = obs_mask if modalities is None else data.obs_mask
        width = latent_dim if private_dim is None else latent_dim + private_dim
        known = {"obs_mask": masks, **_tables(data)}
        encoders, decoders, notes = default_networks(tensors, latent_dim, **known)
        if private_dim is not None:
            private = default_networks(tensors, private_dim, **known)[0]
            decoders = default_networks(tensors, width, **known)[1]
            options = {"private_encoders": private, "private_dims": dict.fromkeys(private, private_dim), **options}
        elif _needs_private(cls):
            raise ValueError(f"{cls.__name__} has private latents. Fix: for_data(..., private_dim=4).")
        vae = cls(encoders, decoders, latent_dim=latent_dim, **options)  # type: ignore[call-arg,arg-type]
        vae.notes = notes
        return vae

    def posterior(self, data: Any = None, obs_mask: Masks = None, **options: Any) -> Any:
        """q(z | x_given), see :func:`pyro_mmvae.inference.posterior`."""
        return self._answer("posterior", data, obs_mask, options)

    def predict(self, data: Any = None, obs_mask: Masks = None, **options: Any) -> Any:
        """Draws of every modality from p(x | z), z ~ q(z | x_given), see :func:`pyro_mmvae.inference.predict`."""
        return self._answer("predict", data, obs_mask, options)

    def impute(self, data: Any = None, obs_mask: Masks = None, **options: Any) -> Any:
        """As :meth:`predict`, observed entries kept, see :func:`pyro_mmvae.inference.impute`."""
        return self._answer("impute", data, obs_mask, options)

    def generate(self, n: int, **options: Any) -> dict[str, Tensor]:
        """Draws of every modality from the prior, see :func:`pyro_mmvae.inference.generate`."""
        return inference.generate(self.model, self.guide, n, **options)

    def decode(self, z: Tensor | Mapping[str, Tensor], **options: Any) -> dict[str, Any]:
        """Likelihoods p(x | z), see :func:`pyro_mmvae.inference.decode`."""
        return inference.decode(self.model, z, **options)

    def log_likelihood(self, data: Any = None, obs_mask: Masks = None, **options: Any) -> Any:
        """log p(x_O), or log p(x_target | x_given), nats, see :func:`pyro_mmvae.inference.log_likelihood`."""
        return self._answer("log_likelihood", data, obs_mask, options)

    def to_inference_data(self, data: Any = None, obs_mask: Masks = None, **options: Any) -> Any:
        """An ArviZ InferenceData, see :func:`pyro_mmvae.inference.to_inference_data`."""
        return self._answer("to_inference_data", data, obs_mask, options)

    def predict_clusters(self, data: Any = None, obs_mask: Masks = None, **options: Any) -> Any:
        """The cluster of each sample, see :func:`pyro_mmvae.inference.predict_clusters`."""
        return self._answer("predict_clusters", data, obs_mask, options)

    def prune_clusters(self, data: Any = None, obs_mask: Masks = None, **options: Any) -> inference.ClusterPruning:
        """Switch off the clusters that are not used, see :func:`pyro_mmvae.inference.prune_clusters`."""
        return inference.prune_clusters(self.model, self.guide, data, obs_mask, **options)

    def _answer(self, verb: str, data: Any, obs_mask: Masks, options: dict[str, Any]) -> Any:
        """Tensors for tensors; tables for a data set made from DataFrames, see :mod:`pyro_mmvae.inference.frames`."""
        if not inference.frames.has_frames(data):
            return getattr(inference, verb)(self.model, self.guide, data, obs_mask, **options)
        if obs_mask is not None:
            raise TypeError("obs_mask: a dataset has its own. Fix: pass data.data and a mask, or the dataset alone.")
        return getattr(inference.frames, verb)(self.model, self.guide, data, **options)

    @property
    def config(self) -> dict[str, Any]:
        """Every option as plain JSON; programs of your own are named, see :func:`pyro_mmvae.load` for them."""
        return io.call_of(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model into a folder, as JSON and safetensors, see :func:`pyro_mmvae.io.save`."""
        io.save(self, path)

    def push_to_hub(self, repo: str, **options: Any) -> str:
        """Upload the model to the Hugging Face Hub, see :func:`pyro_mmvae.io.push_to_hub`."""
        return io.push_to_hub(self, repo, **options)

    def __repr__(self) -> str:
        count = sum(p.numel() for p in self.parameters())
        lines = [f"{type(self).__name__} ({count:,} parameters)"]
        modalities = getattr(self.model, "modalities", None)
        if modalities is not None:
            story = self.model.story.program  # type: ignore[attr-defined]
            lines.append(f"  story: {type(story).__name__} of {', '.join(modalities)}")
        for site, rule in getattr(self.guide, "fusion", {}).items():
            lines.append(f"  guide: {site} by {type(rule).__name__}({rule.extra_repr()})")
        if not hasattr(self.guide, "fusion"):
            lines.append(f"  guide: {type(self.guide).__name__}")
        extra = getattr(self.objective, "extra_repr", lambda: "")()
        lines.append(f"  objective: {type(self.objective).__name__}({extra})")
        terms = getattr(self.objective, "terms", None)
        lines += [f"    {term.describe()}" for term in terms.terms] if terms is not None else []
        lines += [f"  {name}: {note}" for name, note in self.notes.items()]
        return "\n".join(lines)


def _tables(data: Any) -> dict[str, Any]:
    """The columns of a data set made from DataFrames, and of its context, fitted to its observed cells."""
    frames = getattr(data, "frames", None)
    if frames is None:
        return {}
    how, context = frames.scale, frames.context
    columns = {m: fitted(of, data.data[m], data.obs_mask[m], how) for m, of in frames.columns.items()}
    if context:
        cells = torch.stack([data.data[str(c.name)].double() for c in context], -1)
        context = fitted(context, cells, torch.ones_like(cells, dtype=torch.bool), how)
    return {"columns": columns, "context": context}


def _needs_private(cls: type) -> bool:
    """Whether a method cannot be made without private latents."""
    option = inspect.signature(cls).parameters.get("private_encoders")
    return option is not None and option.default is option.empty


register_function("MultimodalVAE", MultimodalVAE)  # so that pyro_mmvae.io, below this layer, can make it
