"""A product over columns of mixed kinds: order, gathers, masks, draws, moments, support."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

from pyro_mmvae.columns import Column
from pyro_mmvae.distributions import (
    ColumnProduct,
    ColumnSupport,
    Lazy,
    base_support,
    fill_value,
    map_params,
    mask_event,
    outside,
)

pytestmark = pytest.mark.usefixtures("float64")

LEVELS = ("a", "b", "c")
COLUMNS = [
    Column("n", "poisson", loc=2.0),
    Column("x", "normal", loc=50.0, scale=10.0),
    Column("k", "categorical", LEVELS),
    Column("y", "normal"),
    Column("b", "bernoulli"),
    Column("c", "log_normal", loc=1.0),
    Column("o", "ordinal", LEVELS),
    Column("z", "zero_inflated_negative_binomial", loc=1.0),
]
ORDER = [1, 3, 0, 2, 6, 4, 5, 7]  # normal, poisson, the two of three classes, bernoulli, log_normal, zero-inflated


def single(batch: tuple[int, ...], seed: int = 0) -> list[dist.TorchDistribution]:
    """One distribution per column, in the order of the columns."""
    g = torch.Generator().manual_seed(seed)

    def raw(*shape: int) -> torch.Tensor:
        return torch.randn((*batch, *shape), generator=g)

    return [
        dist.Poisson(raw().exp()),
        dist.Normal(raw(), 0.7),
        dist.Categorical(logits=raw(3)),
        dist.Normal(raw(), 1.9),
        dist.Bernoulli(logits=raw()),
        dist.LogNormal(raw(), 0.5),
        dist.Categorical(logits=raw(3)),
        dist.ZeroInflatedDistribution(dist.NegativeBinomial(raw().exp() + 1.0, logits=raw()), gate_logits=raw()),
    ]


def product(batch: tuple[int, ...], seed: int = 0) -> ColumnProduct:
    """The same, columns of one family together."""
    n, x, k, y, b, c, o, z = single(batch, seed)
    negative_binomial = dist.NegativeBinomial(
        z.base_dist.total_count.unsqueeze(-1), logits=z.base_dist.logits.unsqueeze(-1)
    )
    parts = [
        dist.Normal(torch.stack([x.loc, y.loc], -1), torch.tensor([0.7, 1.9])),
        dist.Poisson(n.rate.unsqueeze(-1)),
        dist.Categorical(logits=torch.stack([k.logits, o.logits], -2)),
        dist.Bernoulli(logits=b.logits.unsqueeze(-1)),
        dist.LogNormal(c.loc.unsqueeze(-1), 0.5),
        dist.ZeroInflatedDistribution(negative_binomial, gate_logits=z.gate_logits.unsqueeze(-1)),
    ]
    return ColumnProduct(parts, torch.tensor(ORDER), ColumnSupport(COLUMNS))


def cells(batch: tuple[int, ...]) -> torch.Tensor:
    torch.manual_seed(3)
    return torch.stack([fn.sample().to(torch.float64) for fn in single(batch, seed=1)], -1)


@pytest.mark.parametrize("batch", [(), (5,), (4, 1, 5)], ids=str)
def test_log_prob_is_that_of_each_column(batch):
    fn, x = product(batch), cells(batch)
    expected = torch.stack([one.log_prob(x[..., d]) for d, one in enumerate(single(batch))], -1)
    assert fn.batch_shape == (*batch, 8) and fn.event_shape == ()
    torch.testing.assert_close(fn.log_prob(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(fn.to_event(1).log_prob(x), expected.sum(-1), rtol=1e-12, atol=1e-12)


def test_fewer_dimensions_of_the_value_broadcast():
    fn, x = product((4, 1, 5)).to_event(1), cells((5,))
    assert torch.equal(fn.log_prob(x), fn.log_prob(x.expand(4, 1, 5, 8)))


def test_expanded_and_mapped():
    fn, x = product((1, 5)), cells((3, 5))
    wide = fn.to_event(1).expand((3, 5))
    assert wide.batch_shape == (3, 5) and torch.equal(wide.log_prob(x), fn.to_event(1).log_prob(x))
    rows = map_params(fn.to_event(1), lambda p, constraint, k: p[:, 2:4])
    assert rows.batch_shape == (1, 2) and torch.equal(rows.log_prob(x[:, 2:4]), wide.log_prob(x)[:, 2:4])


def test_single_cells_may_be_missing():
    fn, x = product((5,)).to_event(1), cells((5,))
    mask = torch.rand(5, 8) > 0.5
    expected = torch.where(mask, product((5,)).log_prob(x), 0.0).sum(-1)
    torch.testing.assert_close(mask_event(fn, mask, "table").log_prob(x), expected)


def test_lazy_rows_are_rows():
    support = ColumnSupport(COLUMNS)

    def decoder(z: torch.Tensor) -> dist.TorchDistribution:
        parts = [
            dist.Normal(z[..., :2], 1.0),
            dist.Poisson(z[..., 2:3].exp()),
            dist.Categorical(logits=z[..., 3:9].reshape(*z.shape[:-1], 2, 3)),
            dist.Bernoulli(logits=z[..., 9:10]),
            dist.LogNormal(z[..., 10:11], 1.0),
            dist.Poisson(z[..., 11:].exp()),
        ]
        return ColumnProduct(parts, torch.tensor(ORDER), support).to_event(1)

    z, x, rows = torch.randn(5, 12), cells((5,)), torch.tensor([True, False, True, True, False])
    seen = torch.rand(5, 8) > 0.4
    lazy = Lazy(decoder, z, event_shape=(8,), support=support)
    dense = torch.where(rows, mask_event(decoder(z), seen, "table").log_prob(x), 0.0)
    torch.testing.assert_close(lazy.score(x, rows, features=seen), dense, rtol=1e-14, atol=1e-14)


def test_draws_have_the_mean_and_variance():
    fn, n = product(()), 40_000
    draws = fn.sample((n,))
    assert draws.shape == (n, 8) and draws.dtype == torch.float64 and bool(fn.support.check(draws).all())
    numbers = [0, 1, 3, 4, 5, 7]
    spread = fn.variance[numbers].sqrt()
    error = (draws.mean(0) - fn.mean)[numbers] / spread * n**0.5
    assert error.abs().max() < 4.5  # standard errors, of six columns
    four = ((draws - fn.mean) ** 4).mean(0)[numbers]
    error = (draws.var(0) - fn.variance)[numbers] / (four - fn.variance[numbers] ** 2).sqrt() * n**0.5
    assert error.abs().max() < 5.5  # the fourth moment of the log-normal is itself an estimate


def test_the_mean_of_classes_is_the_most_probable_one():
    fn, alone = product((5,)), single((5,))
    for place in (2, 6):
        probs = fn.probabilities(place)
        torch.testing.assert_close(probs, alone[place].probs)
        assert torch.equal(fn.mean[:, place], probs.argmax(-1).to(torch.float64))
        torch.testing.assert_close(fn.variance[:, place], 1 - probs.amax(-1))
    torch.testing.assert_close(fn.mean[:, 4], fn.probabilities(4)[:, 1])
    torch.testing.assert_close(fn.probabilities(4).sum(-1), torch.ones(5))


def test_probabilities_are_of_classes():
    with pytest.raises(ValueError, match="column 'x': its likelihood 'normal' has no classes"):
        product(()).probabilities(1)


def test_reparametrized_where_all_columns_are():
    columns = [Column("x", "normal"), Column("c", "log_normal")]
    loc = torch.zeros(3, 1, requires_grad=True)
    fn = ColumnProduct([dist.Normal(loc, 1.0), dist.LogNormal(loc, 1.0)], None, ColumnSupport(columns))
    x = fn.rsample()
    assert fn.has_rsample and not product(()).has_rsample
    x.sum().backward()
    torch.testing.assert_close(loc.grad.squeeze(-1), 1.0 + x[:, 1].detach())  # d/dl (l + e) + d/dl exp(l + e)
    with pytest.raises(NotImplementedError, match="reparametrized"):
        product(()).rsample()


def test_parts_must_cover_the_columns():
    with pytest.raises(ValueError, match=r"parts of \[1\] cells for 8 columns"):
        ColumnProduct([dist.Normal(torch.zeros(1), 1.0)], None, ColumnSupport(COLUMNS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_support_of_each_column(dtype):
    good = torch.tensor([[0, -3.5, 2, 1e9, 1, 1e-30, 0, 7]], dtype=dtype)
    bad = {0: (-1, 0.5), 1: (torch.nan,), 2: (3, -1, 1.5), 4: (2, 0.3), 5: (0, -1), 6: (3, -1), 7: (-2, 1.1)}
    support = ColumnSupport(COLUMNS)
    assert bool(support.check(good).all())
    for place, values in bad.items():
        for value in values:
            row = good.clone()
            row[0, place] = value
            assert support.check(row)[0].tolist() == [d != place for d in range(8)], (place, value)


def test_integers_are_checked_as_they_are():
    support = ColumnSupport([Column("n", "poisson"), Column("x", "normal"), Column("b", "bernoulli")])
    assert support.check(torch.tensor([[3, -3, 1], [-1, 3, 2]])).tolist() == [[True] * 3, [False, True, False]]


def test_the_constant_is_in_the_support_and_near_the_data():
    fn = product((5,)).to_event(1)
    constant = fill_value(fn.support, fn.event_shape)
    assert constant.shape == (8,) and bool(base_support(fn.support).check(constant).all())
    assert constant[:2].tolist() == [6.0, 50.0]  # exp(2) - 1 rounded, and the location
    low = ColumnSupport([Column("c", "log_normal", loc=-900.0), Column("n", "poisson", loc=-900.0)])
    high = ColumnSupport([Column("c", "log_normal", loc=900.0), Column("n", "poisson", loc=900.0)])
    assert all(bool(s.check(s.inside.float()).all() & s.inside.float().isfinite().all()) for s in (low, high))


def test_rows_outside_are_found():
    x = cells((5,))
    x[3, 2] = 9.0
    assert outside(product((5,)).to_event(1).support, x).tolist() == [False, False, False, True, False]


def test_another_default_device_changes_nothing():
    """The support is looked at where the values are."""
    try:
        torch.set_default_device("meta")  # a tensor created without a device would have no content
        support = ColumnSupport(COLUMNS)
        value = torch.zeros(1, 8, device="cpu")
        assert support.check(value).tolist() == [[True, True, True, True, True, False, True, True]]
        assert support.inside.device.type == "cpu"
    finally:
        torch.set_default_device(None)
