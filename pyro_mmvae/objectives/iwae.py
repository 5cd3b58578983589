"""Importance-weighted bounds over a table of terms, with four gradient estimators.

Layer: objectives.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pyro_mmvae.objectives.gradients import Alias, mixture_dreg
from pyro_mmvae.objectives.learned import LearnedWeights
from pyro_mmvae.objectives.log_weights import LogWeights, log_weights
from pyro_mmvae.objectives.objective import Objective
from pyro_mmvae.objectives.passes import Programs
from pyro_mmvae.objectives.run import Options, Run
from pyro_mmvae.objectives.table import Table
from pyro_mmvae.objectives.terms import Terms

__all__ = ["IWAE"]

Gradient = Literal["path", "stl", "dreg", "dreg_mixture", "dreg_private"]


class IWAE(Objective):
    r"""
    Importance-weighted bound [1] over a table of terms.

    .. math::

        \text{looser:} \quad \mathcal{L}_n = \sum_j c_j \log \frac{1}{K} \sum_k w_{jk}, \qquad
        \text{tight:} \quad \mathcal{L}_n = \log \sum_j c_j \frac{1}{K} \sum_k w_{jk}

    with :math:`\log w = \sum_m \lambda_m \log p(x_m \mid z) + \beta \log p(z) / q(z)`. The logarithm is per sample; the
    scale of the plate ``data`` stays outside it. With one term both are the IWAE bound; K = 1 is the ELBO. For
    lambda = beta = 1, ELBO <= looser <= tight <= log p(x_O) in expectation, where the weights c sum to one.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> import pyro_mmvae as mm
        >>> def story():
        ...     z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...     pyro.sample("x", dist.Normal(z, 1.0).to_event(1))
        >>> model = mm.observe(story, ("x",))
        >>> guide = mm.guides.Product(model, {"x": mm.nn.MLPEncoder(2, 2)})
        >>> mm.IWAE(num_particles=5).per_sample(model, guide, {"x": torch.zeros(3, 2)}).shape
        torch.Size([3])

    :param terms: the table; default: the single term T(O -> O || p).
    :param num_particles: K.
    :param gradient: "path": reparametrization, unbiased. "stl": q's parameters detached, weights w, biased for
        K > 1 [2]. "dreg": doubly reparametrized [3], unbiased for a single proposal; biased for a mixture density with
        K > 1 and several components. "dreg_mixture": the exact form for mixtures, unbiased ("looser" only).
        "dreg_private": doubly reparametrized for private latents, whose proposals are single, path for the shared ones:
        unbiased.
    :param bound: "looser" or "tight".
    :param density: q in the weights: of the "component" that drew z, or of the "mixture" of all terms' draws.

    [1] *Importance Weighted Autoencoders*, Burda, Grosse and Salakhutdinov, ICLR 2016, arXiv:1509.00519, eq. (8).
    [2] *Sticking the Landing*, Roeder, Wu and Duvenaud, NeurIPS 2017, arXiv:1703.09194.
    [3] *Doubly Reparameterized Gradient Estimators*, Tucker, Lawson, Gu and Maddison, ICLR 2019, arXiv:1810.04152.
    """

    def __init__(
        self,
        terms: Terms | None = None,
        *,
        num_particles: int = 10,
        gradient: Gradient = "path",
        bound: Literal["looser", "tight"] = "looser",
        density: Literal["component", "mixture"] = "component",
    ) -> None:
        super().__init__(terms, num_particles=num_particles)
        if any(isinstance(term.weight, LearnedWeights) for term in self.terms.terms):
            raise NotImplementedError("Learned weights of terms: only under the ELBO. Fix: objectives.ELBO(terms).")
        for name, value, known in (
            ("gradient", gradient, get_args(Gradient)),
            ("bound", bound, ("looser", "tight")),
            ("density", density, ("component", "mixture")),
        ):
            if value not in known:
                raise ValueError(f"{name}: expected one of {list(known)}, got {value!r}.")
        if gradient == "dreg_mixture" and (bound, density) != ("looser", "mixture"):
            raise ValueError("gradient='dreg_mixture' needs bound='looser' and density='mixture'. Fix: 'dreg'.")
        self.gradient, self.bound, self.density = gradient, bound, density

    def extra_repr(self) -> str:
        own = f"gradient={self.gradient!r}, bound={self.bound!r}, density={self.density!r}"
        return f"num_particles={self.num_particles}, {own}"

    def _reduce(
        self, programs: Programs, parts: list[Table], experts: Any
    ) -> tuple[Tensor, Tensor | float, float]:
        if self.bound == "tight" and len(parts) > 1:
            raise NotImplementedError(
                "bound='tight' pools all terms under one logarithm: they need the same gates and a guide that answers "
                "masks with leading dimensions. Fix: bound='looser'."
            )
        total: Tensor | float = 0.0
        for table in parts:
            value, done = self._part(programs, table, experts)
            total = total + value
        return total, done.outside, done.model.scale  # type: ignore[return-value]

    def _part(self, programs: Programs, table: Table, experts: Any) -> tuple[Tensor, Run]:
        plain = self.gradient == "path" or not torch.is_grad_enabled()
        alias = None if plain else Alias(cut=self.gradient == "dreg_mixture")
        stop_q: bool | Literal["private"] = "private" if not plain and self.gradient == "dreg_private" else not plain
        options = Options(analytic=False, stop_q=stop_q, hook=alias)
        done = self._run(programs, table, options, experts)
        weights = log_weights(
            programs,
            table,
            done,
            done.values,
            mixture=self.density == "mixture",
            stop_q=stop_q is True,
            experts=experts,
        )
        bound = self._bound(weights)
        if alias is None:
            return bound, done
        if not table.structure.one_to_one:
            raise NotImplementedError(f"gradient={self.gradient!r} needs one term per draw. Fix: gradient='path'.")
        if self.gradient == "dreg_mixture" and done.guide.private_to and self.num_particles > 1:
            raise NotImplementedError(
                "gradient='dreg_mixture': the weights across components would need private latents of each. Fix: "
                "gradient='dreg_private', unbiased as well."
            )
        if self.gradient == "dreg_mixture":
            surrogate = mixture_dreg(weights, alias, done)
        else:
            normalized = self._normalized(weights)
            surrogate = (normalized * weights.log_w).sum((0, 1))
            if self.gradient in ("dreg", "dreg_private"):
                alias.scale_gradients(self._share(weights), table.beta, done, programs.nesting)
        return bound.detach() + surrogate - surrogate.detach(), done

    def _bound(self, weights: LogWeights) -> Tensor:  # shape: (B,)
        each = weights.log_w.logsumexp(0) - math.log(self.num_particles)
        if self.bound == "looser":
            return torch.where(weights.weight != 0, weights.weight * each, 0.0).sum(0)
        valid = (weights.weight != 0).any(0)
        pooled = (each + weights.weight.masked_fill(~valid, 1.0).log()).logsumexp(0)
        return torch.where(valid, pooled, 0.0)

    def _share(self, weights: LogWeights) -> Tensor:  # shape: (K, J, B)
        """Each particle's share within its logarithm."""
        log_w = weights.log_w.detach()
        if self.bound == "looser":
            return log_w.softmax(0)
        valid = (weights.weight != 0).any(0)
        pooled = log_w + weights.weight.masked_fill(~valid, 1.0).log()
        return pooled.flatten(0, 1).softmax(0).reshape(pooled.shape)

    def _normalized(self, weights: LogWeights) -> Tensor:  # shape: (K, J, B)
        """Coefficient of each log-weight in the gradient of the bound."""
        share = self._share(weights)
        if self.bound == "looser":
            return share * weights.weight
        return share * (weights.weight != 0).any(0)
