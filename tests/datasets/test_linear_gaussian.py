"""The closed forms against torch's MultivariateNormal on the stacked joint covariance, one row at a time."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyro_mmvae.datasets import LinearGaussian, linear_gaussian

pytestmark = pytest.mark.usefixtures("float64")
TIGHT = {"rtol": 1e-9, "atol": 1e-9}  # float64 with condition numbers below 1e4


def problem(modalities: int = 3, n: int = 12) -> tuple[LinearGaussian, dict[str, Tensor]]:
    sizes = dict(list({"a": 3, "b": 1, "c": 4}.items())[:modalities])
    ds = linear_gaussian(n, sizes, latent_dim=2, noise=0.7, seed=3)
    noise = {m: (0.3 + torch.rand(f)) if m != "b" else 0.4 for m, f in sizes.items()}
    return LinearGaussian(ds.truth.weights, ds.truth.bias, noise), ds.data


def mask_of(kind: str, data: dict[str, Tensor]) -> dict[str, Tensor]:
    n = len(next(iter(data.values())))
    if kind == "all":
        return {m: torch.ones(n, dtype=torch.bool) for m in data}
    if kind == "none":
        return {m: torch.zeros(n, dtype=torch.bool) for m in data}
    return {m: torch.rand(x.shape if kind == "features" else (n,)) < 0.5 for m, x in data.items()}


def joint(truth: LinearGaussian, latent: bool) -> tuple[Tensor, Tensor]:
    """Mean and covariance of all features, with z in front if ``latent``."""
    w = torch.cat(list(truth.weights.values()))
    s = torch.cat([torch.as_tensor(truth.noise[m]).expand(len(w_m)) for m, w_m in truth.weights.items()])
    mean, cov = torch.cat(list(truth.bias.values())), w @ w.T + torch.diag(s**2)
    if not latent:
        return mean, cov
    d = w.shape[-1]
    return torch.cat([torch.zeros(d), mean]), torch.cat([torch.cat([torch.eye(d), w.T], 1), torch.cat([w, cov], 1)])


def rows(data: dict[str, Tensor], mask: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """(values, mask) of all features, for each row."""
    cells = {m: (k if k.dim() == 2 else k.unsqueeze(-1)).expand(data[m].shape) for m, k in mask.items()}
    return list(zip(torch.cat(list(data.values()), -1), torch.cat([cells[m] for m in data], -1), strict=True))


def dense_log_likelihood(truth: LinearGaussian, data: dict[str, Tensor], mask: dict[str, Tensor]) -> Tensor:
    mean, cov = joint(truth, latent=False)
    values = []
    for x, o in rows(data, mask):
        values.append(MultivariateNormal(mean[o], cov[o][:, o]).log_prob(x[o]) if o.any() else torch.tensor(0.0))
    return torch.stack(values)


@pytest.mark.parametrize("kind", ["all", "none", "rows", "features"])
@pytest.mark.parametrize("modalities", [1, 2, 3])
def test_log_likelihood(modalities: int, kind: str) -> None:
    truth, data = problem(modalities)
    mask = mask_of(kind, data)
    torch.testing.assert_close(truth.log_likelihood(data, mask), dense_log_likelihood(truth, data, mask), **TIGHT)


@pytest.mark.parametrize("kind", ["all", "none", "rows", "features"])
@pytest.mark.parametrize("modalities", [1, 2, 3])
def test_posterior_is_the_conditional_of_the_joint(modalities: int, kind: str) -> None:
    truth, data = problem(modalities)
    mask = mask_of(kind, data)
    q = truth.posterior(data, mask)
    mean, cov = joint(truth, latent=True)
    assert q.batch_shape == (12,) and q.event_shape == (2,) and truth.latent_dim == 2
    for i, (x, o) in enumerate(rows(data, mask)):
        seen = torch.cat([torch.zeros(2, dtype=torch.bool), o])
        gain = cov[:2, seen] @ torch.linalg.inv(cov[seen][:, seen])
        torch.testing.assert_close(q.mean[i], gain @ (x[o] - mean[seen]), **TIGHT)
        torch.testing.assert_close(q.covariance_matrix[i], cov[:2, :2] - gain @ cov[seen, :2], **TIGHT)


@pytest.mark.parametrize("kind", ["all", "rows", "features"])
def test_conditional_is_the_density_of_the_conditional_gaussian(kind: str) -> None:
    truth, data = problem()
    mask = mask_of(kind, data)
    mean, cov = joint(truth, latent=False)
    owner = [m for m, x in data.items() for _ in range(x.shape[-1])]
    names = list(data)
    splits = [(set(t), set(names) - set(t), None) for k in (1, 2, 3) for t in combinations(names, k)]
    splits += [({"a"}, {"c"}, {"c"}), ({"a", "b"}, set(), set())]
    for target, given, argument in splits:
        got = truth.conditional_log_likelihood(data, mask, target=target, given=argument)
        in_t = torch.tensor([m in target for m in owner])
        in_s = torch.tensor([m in given for m in owner])
        for i, (x, o) in enumerate(rows(data, mask)):
            t, s = o & in_t, o & in_s
            if not t.any():
                torch.testing.assert_close(got[i], torch.tensor(0.0), **TIGHT)
                continue
            gain = cov[t][:, s] @ torch.linalg.inv(cov[s][:, s])
            spread = cov[t][:, t] - gain @ cov[s][:, t]
            want = MultivariateNormal(mean[t] + gain @ (x[s] - mean[s]), (spread + spread.T) / 2).log_prob(x[t])
            torch.testing.assert_close(got[i], want, **TIGHT)


def test_nothing_observed_is_exactly_the_prior_and_zero() -> None:
    truth, data = problem()
    mask = mask_of("none", data)
    assert truth.log_likelihood(data, mask).eq(0).all()
    q = truth.posterior(data, mask)
    assert q.mean.eq(0).all() and torch.equal(q.covariance_matrix, torch.eye(2).expand(12, 2, 2))


@pytest.mark.parametrize("content", [float("nan"), float("inf"), 1e30])
def test_content_under_the_mask_does_not_matter(content: float) -> None:
    truth, data = problem()
    mask = mask_of("features", data)
    dirty = {m: x.masked_fill(~mask[m], content) for m, x in data.items()}
    assert torch.equal(truth.log_likelihood(data, mask), truth.log_likelihood(dirty, mask))
    assert torch.equal(truth.posterior(data, mask).mean, truth.posterior(dirty, mask).mean)


def test_absent_modalities_are_missing_and_no_mask_is_all_observed() -> None:
    truth, data = problem()
    mask = {**mask_of("all", data), "b": torch.zeros(12, dtype=torch.bool)}
    expected = truth.log_likelihood(data, mask)
    assert torch.equal(truth.log_likelihood({"c": data["c"], "a": data["a"]}), expected)
    assert torch.equal(truth.log_likelihood({**data, "b": None}), expected)
    assert torch.equal(truth.log_likelihood(data, {"b": mask["b"], "a": None}), expected)


def test_results_have_the_dtype_of_the_weights() -> None:
    truth, data = problem()
    single = {m: x.float() for m, x in data.items()}
    assert truth.log_likelihood(single).dtype == torch.float64
    torch.testing.assert_close(truth.log_likelihood(single), truth.log_likelihood(data), rtol=1e-4, atol=1e-4)


def test_the_data_come_from_the_truth() -> None:
    n = 20_000
    ds = linear_gaussian(n, {"a": 3, "b": 2}, latent_dim=2, noise=0.5, seed=1)
    assert ds.data["a"].shape == (n, 3) and ds.labels.shape == (n, 2)
    residual = ds.data["a"] - ds.labels @ ds.truth.weights["a"].mT - ds.truth.bias["a"]
    assert abs(residual.std().item() - 0.5) < 4 * 0.5 / math.sqrt(2 * 3 * n)
    assert ds.labels.mean(0).abs().max() < 4 / math.sqrt(n)
    assert (ds.labels.var(0) - 1).abs().max() < 4 * math.sqrt(2 / n)
    # entropy: the mean of log p(x) is that of its own Gaussian
    mean, cov = joint(ds.truth, latent=False)
    log_p = ds.truth.log_likelihood(ds.data, ds.obs_mask)
    expected = -MultivariateNormal(mean, cov).entropy()
    assert abs(log_p.mean() - expected) < 4 * log_p.std() / math.sqrt(n)


def test_sizes_seed_dtype_and_truth_go_along() -> None:
    ds = linear_gaussian(50, 3)
    assert ds.modalities == ("x1", "x2", "x3") and {x.shape for x in ds.data.values()} == {(50, 3)}
    again, other = linear_gaussian(50, 3, seed=0), linear_gaussian(50, 3, seed=1)
    assert all(torch.equal(ds.data[m], again.data[m]) for m in ds.data)
    assert not torch.equal(ds.data["x1"], other.data["x1"])
    assert ds.hide(0.5).split(0.5)[0].truth is ds.truth
    torch.set_default_dtype(torch.float32)
    single = linear_gaussian(50, 3)
    torch.set_default_dtype(torch.float64)
    assert torch.equal(single.data["x1"], ds.data["x1"].float()) and single.truth.weights["x1"].dtype == torch.float64


@pytest.mark.parametrize(
    "options",
    [{"n": 0}, {"modalities": 0}, {"modalities": {}}, {"modalities": {"a": 0}}, {"latent_dim": 0}],
    ids=lambda v: str(v),
)
def test_sizes_below_one(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="sizes are at least 1"):
        linear_gaussian(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("noise", [0.0, -1.0, float("nan")])
def test_noise_is_positive(noise: float) -> None:
    with pytest.raises(ValueError, match="noise: expected a standard deviation > 0"):
        linear_gaussian(noise=noise)


def test_errors_name_the_modality() -> None:
    truth, data = problem()
    with pytest.raises(ValueError, match=r"data: \['d'\] is no modality here. Known: a, b, c"):
        truth.posterior({**data, "d": data["a"]})
    with pytest.raises(ValueError, match=r"'a': expected shape \(12, 3\), got \(12, 2\)"):
        truth.posterior({"a": data["a"][:, :2]})
    with pytest.raises(ValueError, match="same number of rows"):
        truth.posterior({"a": data["a"], "b": data["b"][:5]})
    with pytest.raises(ValueError, match="'b': row 4 is observed and not finite"):
        truth.log_likelihood({"b": data["b"].index_fill(0, torch.tensor([4]), float("nan"))})
    with pytest.raises(ValueError, match="no modality is given"):
        truth.log_likelihood({"a": None})
    with pytest.raises(TypeError, match=r"Fix: mask.bool\(\)"):
        truth.log_likelihood(data, {"a": torch.ones(12)})
    with pytest.raises(ValueError, match=r"\['a'\]: both target and given"):
        truth.conditional_log_likelihood(data, target={"a"}, given={"a", "b"})
    with pytest.raises(ValueError, match=r"target: \['z'\] is no modality"):
        truth.conditional_log_likelihood(data, target={"z"})
    with pytest.raises(TypeError, match=r"given: .* the string 'b'. Fix: {'b'}"):
        truth.conditional_log_likelihood(data, target={"a"}, given="b")
