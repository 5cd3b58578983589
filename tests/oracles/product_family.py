"""Exact objectives of the product family: gPoE, DMVAE, CRMVAE, mmJSD, DVCCA, MVAE under other rules.

Test layer: naive loops over rows and terms; every M of a formula is M_n, a row with nothing observed is exactly 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .linear_gaussian import Gaussian, LinearGaussian, Masks
from .products import observed, pool, row_product
from .shared_private import SharedPrivate
from .terms import Number, kl_diag, private_term_value, term_value

Model = LinearGaussian | SharedPrivate
Experts = Mapping[str, Gaussian]
Rescale = Mapping[str, Number] | None
BetaPrivate = float | Mapping[str, float]
Fuse = Callable[[Experts, Sequence[str], int], Gaussian]  # experts, names of a non-empty S, row -> loc and scale (L,)


@dataclass(frozen=True)
class Row:
    """One row: its number, O_n, its entries as a batch of one, and q(w_m | x_m) of what it observes."""

    model: Model
    n: int
    names: tuple[str, ...]
    data: dict[str, Tensor]
    target: dict[str, Tensor]
    private: dict[str, Gaussian]
    rescale: Rescale

    def score(self, q: Gaussian, names: Sequence[str] | None = None) -> Tensor:  # shapes: (L,) -> ()
        """E_q of lambda_m log p(x_m | z, w_m) summed over the given modalities (all of O_n), w_m at its posterior."""
        chosen = self.names if names is None else names
        target = {m: a & (m in chosen) for m, a in self.target.items()}
        one = q[0].unsqueeze(0).double(), q[1].unsqueeze(0).double()
        if isinstance(self.model, LinearGaussian):
            return term_value(self.model, one, self.data, target, rescale=self.rescale, beta=0.0)[0]
        known = {m: torch.tensor([m in self.private]) for m in self.model.modalities}
        return private_term_value(
            self.model, one, self.private, known, self.data, target, rescale=self.rescale, beta=0.0, beta_private=0.0
        )[0]

    def kl(self, q: Gaussian) -> Tensor:  # shapes: (L,) -> ()
        """KL(q || p) of the shared latent."""
        return kl_diag(q, self.model.prior)

    def private_kl(self, weight: BetaPrivate) -> Tensor | float:  # shape: ()
        """sum over O_n of beta_m KL(q(w_m | x_m) || p(w_m))."""
        total: Tensor | float = 0.0
        for m, q in self.private.items():
            own = weight[m] if isinstance(weight, Mapping) else weight
            total = total + own * kl_diag(q, self.model.private_prior[m])[0]  # type: ignore[union-attr]
        return total


def rows(
    model: Model,
    data: Mapping[str, Tensor],
    obs_mask: Masks,
    private: Experts | None = None,
    rescale: Rescale = None,
) -> Iterator[Row]:
    """Every row of a problem."""
    own = private if private is not None else {}
    for n in range(next(iter(obs_mask.values())).shape[0]):
        names, at = observed(obs_mask, n), slice(n, n + 1)
        yield Row(
            model,
            n,
            names,
            {m: x[at] for m, x in data.items()},
            {m: a[at] for m, a in obs_mask.items()},
            {m: (q[0][at].double(), q[1][at].double()) for m, q in own.items() if m in names},
            rescale,
        )


def several(prior: Gaussian) -> Fuse:  # shapes: (L,)
    """PoE+ of two or more experts; a single expert is itself."""
    return lambda experts, names, n: row_product(experts, names, n, prior if len(names) > 1 else None)


def with_prior(prior: Gaussian) -> Fuse:  # shapes: (L,)
    """PoE+."""
    return lambda experts, names, n: row_product(experts, names, n, prior)


def generalized(exponents: Mapping[str, Tensor] | None = None, *, normalize: bool = True) -> Fuse:  # shapes: (L,)
    """
    gPoE: q_m^alpha_m per dimension, alpha_m = e_m / sum of e over S; ``normalize=False``: alpha_m = e_m.

    Example::

        >>> one = {m: (torch.zeros(1, 1), torch.ones(1, 1)) for m in "ab"}
        >>> generalized()(one, "ab", 0)[1]
        tensor([1.], dtype=torch.float64)

    :param exponents: e_m > 0; all equal (to 1 / M without normalization, M those of ``experts``) if not given.
    """

    def fuse(experts: Experts, names: Sequence[str], n: int) -> Gaussian:
        size = next(iter(experts.values()))[0].shape[-1]
        equal = torch.full((size,), 1 / len(experts), dtype=torch.float64)
        given = {m: (exponents[m] if exponents is not None else equal).double() for m in names}
        total = torch.stack(list(given.values())).sum(0) if normalize else torch.ones(size, dtype=torch.float64)
        return pool([(given[m] / total, experts[m][0][n], experts[m][1][n]) for m in names])

    return fuse


def geometric(prior: Gaussian, weights: Mapping[str, float] | None = None) -> Fuse:  # shapes: (L,)
    """GEO+: p^pi_0 prod q_m^pi_m, pi proportional to the weights (key "" for the prior) over the prior and S."""

    def fuse(experts: Experts, names: Sequence[str], n: int) -> Gaussian:
        pi = _shares(weights, names)
        return pool([(pi[""], *prior), *((pi[m], experts[m][0][n], experts[m][1][n]) for m in names)])

    return fuse


def mean_of_parameters(prior: Gaussian | None = None) -> Fuse:  # shapes: (L,)
    """Means of locations and of log-variances, the prior's among them if it is given."""

    def fuse(experts: Experts, names: Sequence[str], n: int) -> Gaussian:
        parts = [(experts[m][0][n].double(), experts[m][1][n].double()) for m in names]
        parts = parts if prior is None else [*parts, prior]
        log_variance = sum((scale**2).log() for _, scale in parts) / len(parts)
        return sum(loc for loc, _ in parts) / len(parts), (0.5 * log_variance).exp()  # type: ignore[return-value]

    return fuse


def _shares(weights: Mapping[str, float] | None, names: Sequence[str]) -> dict[str, float]:
    """pi_0 under the key "", pi_m under m: they sum to one over the prior and the named modalities."""
    given = {m: 1.0 if weights is None else weights[m] for m in ("", *names)}
    return {m: w / sum(given.values()) for m, w in given.items()}


def _values(values: Sequence[Tensor | float]) -> Tensor:
    """One value per row to (B,)."""
    return torch.stack([torch.as_tensor(v, dtype=torch.float64).reshape(()) for v in values])


def exact_gpoe(
    model: Model,
    experts: Experts,
    data: Mapping[str, Tensor],
    obs_mask: Masks,
    *,
    fuse: Fuse,
    beta: float = 1.0,
    beta_private: BetaPrivate = 1.0,
    rescale: Rescale = None,
    private: Experts | None = None,
) -> Tensor:  # shape: (B,)
    """
    The joint term alone, q by the given rule: E_q[sum_{m in O} lambda_m log p(x_m|z,w_m)] - beta KL(q||p)
    - beta sum_{m in O} beta_m KL(q(w_m|x_m)||p).
    """
    values: list[Tensor | float] = []
    for row in rows(model, data, obs_mask, private, rescale):
        if not row.names:
            values.append(0.0)
            continue
        q = fuse(experts, row.names, row.n)
        values.append(row.score(q) - beta * row.kl(q) - beta * row.private_kl(beta_private))
    return _values(values)


def exact_mvae_by(
    model: Model,
    experts: Experts,
    data: Mapping[str, Tensor],
    obs_mask: Masks,
    *,
    fuse: Fuse,
    unimodal: bool = True,
    beta: float = 1.0,
    rescale: Rescale = None,
) -> Tensor:  # shape: (B,)
    """MVAE, q by the given rule: ELBO_O plus, if ``unimodal``, ELBO_{m} of every m in O; equal terms are kept."""
    values: list[Tensor | float] = []
    for row in rows(model, data, obs_mask, None, rescale):
        total: Tensor | float = 0.0
        for s in ([row.names] if row.names else []) + ([(m,) for m in row.names] if unimodal else []):
            q = fuse(experts, s, row.n)
            total = total + row.score(q, s) - beta * row.kl(q)
        values.append(total)
    return _values(values)


def exact_dmvae(
    model: Model,
    experts: Experts,
    data: Mapping[str, Tensor],
    obs_mask: Masks,
    *,
    fuse: Fuse,
    counting: Literal["paper", "multivae"] = "paper",
    reconstruct_joint: bool = True,
    normalize_rows: bool = False,
    beta: float = 1.0,
    beta_private: BetaPrivate = 1.0,
    rescale: Rescale = None,
    private: Experts | None = None,
) -> Tensor:  # shape: (B,)
    """
    DMVAE: rows r = O and every {j}, j in O, each with sum_{i in O} lambda_i E log p(x_i|z_r,w_i)
    - c beta KL(q_r||p) - beta sum_{i in O} beta_i KL(q(w_i|x_i)||p); c = M_n in the paper, 1 in multivae.

    :param reconstruct_joint: False: without the scores of row O. :param normalize_rows: divided by M_n + 1.
    """
    values: list[Tensor | float] = []
    for row in rows(model, data, obs_mask, private, rescale):
        count = len(row.names)
        factor = count if counting == "paper" else 1
        total: Tensor | float = 0.0
        for number, s in enumerate([row.names, *((j,) for j in row.names)] if count else []):
            q = fuse(experts, s, row.n)
            total = total - factor * beta * row.kl(q) - beta * row.private_kl(beta_private)
            if reconstruct_joint or number > 0:
                total = total + row.score(q)
        values.append(total / (count + 1) if normalize_rows else total)
    return _values(values)


def exact_crmvae(
    model: Model,
    experts: Experts,
    data: Mapping[str, Tensor],
    obs_mask: Masks,
    *,
    beta: float = 2.5,
    rescale: Rescale = None,
) -> Tensor:  # shape: (B,)
    """
    CRMVAE: 1/(2(M_n+1)) sum_m lambda_m (E_q + E_{q_m}) log p(x_m|z) - beta/(M_n+1) {KL(q||p) + sum_m KL(q||q_m)}.

    q is the product of the observed experts without prior expert.
    """
    values: list[Tensor | float] = []
    for row in rows(model, data, obs_mask, None, rescale):
        if not row.names:
            values.append(0.0)
            continue
        q = row_product(experts, row.names, row.n)
        score, penalty = row.score(q), row.kl(q)
        for m in row.names:
            own = experts[m][0][row.n].double(), experts[m][1][row.n].double()
            score = score + row.score(own, (m,))
            penalty = penalty + kl_diag(q, own)
        size = len(row.names) + 1
        values.append(score / (2 * size) - beta / size * penalty)
    return _values(values)


def exact_mmjsd(
    model: Model,
    experts: Experts,
    data: Mapping[str, Tensor],
    obs_mask: Masks,
    *,
    weights: Mapping[str, float] | None = None,
    beta: float = 1.0,
    beta_private: BetaPrivate = 1.0,
    rescale: Rescale = None,
    private: Experts | None = None,
) -> Tensor:  # shape: (B,)
    """
    mmJSD: 1/M_n sum_{j in O} E_{q_j}[sum_{m in O} lambda_m log p(x_m|z,w_m)]
    - beta {pi_0 KL(p||f) + sum_m pi_m KL(q_m||f) + sum_m beta_m KL(q(w_m|x_m)||p)}, f proportional to
    p^pi_0 prod q_m^pi_m.

    :param weights: pi before it is renormalized over the prior (key "") and O_n; equal if not given.
    """
    fuse = geometric(model.prior, weights)
    values: list[Tensor | float] = []
    for row in rows(model, data, obs_mask, private, rescale):
        if not row.names:
            values.append(0.0)
            continue
        f, pi = fuse(experts, row.names, row.n), _shares(weights, row.names)
        score: Tensor | float = 0.0
        divergence = pi[""] * kl_diag(model.prior, f)
        for m in row.names:
            own = experts[m][0][row.n].double(), experts[m][1][row.n].double()
            score = score + row.score(own) / len(row.names)
            divergence = divergence + pi[m] * kl_diag(own, f)
        values.append(score - beta * (divergence + row.private_kl(beta_private)))
    return _values(values)


def exact_dvcca(
    model: Model,
    experts: Experts,
    data: Mapping[str, Tensor],
    obs_mask: Masks,
    *,
    reference: str,
    beta: float = 1.0,
    beta_private: BetaPrivate = 1.0,
    rescale: Rescale = None,
    private: Experts | None = None,
) -> Tensor:  # shape: (B,)
    """DVCCA: the joint term with q(z | x_r) of the reference r alone; 0 for a row without it (fallback "drop")."""
    values: list[Tensor | float] = []
    for row in rows(model, data, obs_mask, private, rescale):
        if reference not in row.names:
            values.append(0.0)
            continue
        q = experts[reference][0][row.n].double(), experts[reference][1][row.n].double()
        values.append(row.score(q) - beta * row.kl(q) - beta * row.private_kl(beta_private))
    return _values(values)
