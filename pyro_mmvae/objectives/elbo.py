"""The evidence lower bound over a table of terms.

Layer: objectives.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from pyro_mmvae.objectives.objective import Objective
from pyro_mmvae.objectives.passes import Programs
from pyro_mmvae.objectives.run import Options
from pyro_mmvae.objectives.table import Table
from pyro_mmvae.objectives.terms import Terms
from pyro_mmvae.objectives.values import term_values

__all__ = ["ELBO"]


class ELBO(Objective):
    r"""
    Weighted sum of terms, each a mean over K particles.

    .. math:: \mathcal{L}_n = \sum_j c_{jn} \, T(S_{jn} \to A_{jn} \,\|\, r_{jn})

    KL divergences are in closed form where they are known, else sampled.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> import pyro_mmvae as mm
        >>> def story():
        ...     z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...     pyro.sample("x", dist.Normal(z, 1.0).to_event(1))
        >>> model = mm.observe(story, ("x",))
        >>> guide = mm.guides.Product(model, {"x": mm.nn.MLPEncoder(2, 2)})
        >>> mm.ELBO().per_sample(model, guide, {"x": torch.zeros(3, 2)}, {"x": torch.tensor([True, True, False])})[2]
        tensor(0., grad_fn=<SelectBackward0>)

    :param terms: the table; default: the single term T(O -> O || p).
    :param num_particles: draws per sample and term, K.
    :param kl: "analytic" where known, or "sampled" always.
    :param gradient: "path" (reparametrization), or "stl": q's parameters get no gradient but through the draws
        (Roeder, Wu and Duvenaud 2017, arXiv:1703.09194); it implies sampled divergences.
    """

    def __init__(
        self,
        terms: Terms | None = None,
        *,
        num_particles: int = 1,
        kl: Literal["analytic", "sampled"] = "analytic",
        gradient: Literal["path", "stl"] = "path",
    ) -> None:
        super().__init__(terms, num_particles=num_particles)
        if kl not in ("analytic", "sampled"):
            raise ValueError(f"kl: expected 'analytic' or 'sampled', got {kl!r}.")
        if gradient not in ("path", "stl"):
            raise ValueError(f"gradient: expected 'path' or 'stl', got {gradient!r}.")
        self.kl, self.gradient = kl, gradient

    def extra_repr(self) -> str:
        return f"num_particles={self.num_particles}, kl={self.kl!r}, gradient={self.gradient!r}"

    def _reduce(
        self, programs: Programs, parts: list[Table], experts: Any
    ) -> tuple[Tensor, Tensor | float, float]:
        options = Options(analytic=self.kl == "analytic", stop_q=self.gradient == "stl")
        total: Tensor | float = 0.0
        for table in parts:
            done = self._run(programs, table, options, experts)
            value = term_values(table, done, programs.names, programs.data.size)
            value = value[0] if value.shape[0] == 1 else value.mean(0)
            weight, bonus = table.weights(value)
            total = total + torch.where(weight != 0, weight * value, 0.0).sum(0) + bonus
        return total, done.outside, done.model.scale  # type: ignore[return-value]
