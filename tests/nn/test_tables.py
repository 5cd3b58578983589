"""What networks read of tables: standardized cells, one-hot classes, masks, covariates by name."""

from __future__ import annotations

import json
import math

import pytest
import torch

from pyro_mmvae.columns import Column, fitted
from pyro_mmvae.nn import ColumnFeatures, Context, TableEncoder, from_config

LEVELS = ("a", "b", "c")
COLUMNS = [
    Column("k", "categorical", LEVELS),
    Column("x", "normal", loc=50.0, scale=10.0),
    Column("b", "bernoulli"),
    Column("c", "log_normal", loc=1.0, scale=2.0),
    Column("o", "ordinal", ("I", "II", "III", "IV", "V")),
    Column("n", "poisson", loc=2.0, scale=0.5),
    Column("g", "categorical", ("u", "v")),
]
CELLS = [2.0, 35.0, 1.0, math.exp(4.0), 1.0, math.expm1(2.5), 0.0]
FEATURES = [-1.5, 1.0, 1.5, -0.5, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0]  # x, b, c, o, n, then one-hot k and g
OWNERS = [1, 2, 3, 4, 5, 0, 0, 0, 6, 6]


@pytest.mark.parametrize("batch", [(), (4,), (2, 1, 4)], ids=str)
def test_features_of_each_kind(float64, batch):
    found = ColumnFeatures(COLUMNS)(torch.tensor(CELLS).expand(*batch, 7))
    assert found.shape == (*batch, 10) and ColumnFeatures(COLUMNS).width == 10
    torch.testing.assert_close(found, torch.tensor(FEATURES).expand(*batch, 10), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("place", range(7))
@pytest.mark.parametrize("content", [math.nan, math.inf, -1e30, 0.0])
def test_missing_cells_are_zero_whatever_they_hold(place, content):
    features = ColumnFeatures(COLUMNS, mask=True)
    x, seen = torch.tensor(CELLS), torch.arange(7) != place
    whole = features(x)
    x[place] = content
    found = features(x, seen)
    assert features.width == len(found) == 17
    expected = torch.where(torch.tensor([o != place for o in OWNERS]), whole[:10], 0.0)
    assert torch.equal(found[:10], expected) and torch.equal(found[10:], seen.float())


def test_without_the_mask_nothing_says_what_is_missing():
    features = ColumnFeatures(COLUMNS)
    found = features(torch.tensor([CELLS, CELLS]), torch.tensor([[True] * 7, [False] * 7]))
    assert torch.equal(found[0], features(torch.tensor(CELLS))) and not found[1].any()


def test_wild_cells_are_cut():
    columns = [Column("x", "normal"), Column("c", "log_normal", scale=1e-3)]
    x = torch.tensor([[1e30, 1e-40], [-50.0, 5.0]], requires_grad=True)
    found = ColumnFeatures(columns)(x)
    assert found.tolist() == [[10.0, -10.0], [-10.0, 10.0]]
    found.sum().backward()
    assert bool(x.grad.isfinite().all())


def test_a_single_level_is_a_constant():
    columns = [Column("o", "ordinal", ("I",)), Column("k", "categorical", ("a",))]
    assert ColumnFeatures(columns)(torch.zeros(2)).tolist() == [0.0, 1.0]


def test_other_units_give_the_same_features(float64):
    x = torch.randn(200, 2) * torch.tensor([1.0, 3.0])
    seen = torch.rand(200, 2) > 0.3
    columns = [Column("a", "normal"), Column("b", "laplace")]
    moved = x * 1000 + 5e4
    before = ColumnFeatures(fitted(columns, x, seen))(x, seen)
    after = ColumnFeatures(fitted(columns, moved, seen))(moved, seen)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-11)  # rounding of 5e4 is 7e-12, over scales of 1000


def test_wrong_width():
    with pytest.raises(ValueError, match=r"cells of shape \(\*batch, 7\), got \(5, 6\)"):
        ColumnFeatures(COLUMNS)(torch.zeros(5, 6))


def context() -> Context:
    return Context([Column("age", "normal", loc=50.0, scale=10.0), Column("site", "categorical", LEVELS)])


def test_context_by_name_whatever_the_order():
    age, site = torch.tensor([40.0, 60.0]), torch.tensor([2, 0])
    found = context()(site=site, age=age)
    assert context().names == ("age", "site") and context().width == 4
    assert found.tolist() == [[-1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 0.0, 0.0]]


def test_context_broadcasts():
    assert context()(site=torch.zeros(3, 1), age=torch.zeros(5)).shape == (3, 5, 4)


def test_names_that_are_no_identifiers():
    named = Context([Column("age at diagnosis", "normal")])
    assert named(**{"age at diagnosis": torch.ones(2)}).tolist() == [[1.0], [1.0]]


def test_context_errors():
    with pytest.raises(ValueError, match=r"context lacks \['site'\]"):
        context()(age=torch.zeros(2))
    with pytest.raises(ValueError, match=r"unknown \['dose'\]"):
        context()(age=torch.zeros(2), site=torch.zeros(2), dose=torch.zeros(2))
    with pytest.raises(TypeError, match="column 3 is a covariate and goes by name"):
        Context([Column(3, "normal")])


def encoder(**options) -> TableEncoder:
    torch.manual_seed(0)
    return TableEncoder(COLUMNS, 2, hidden=(8,), **options)


def test_expert_of_a_table():
    q = encoder()(torch.tensor(CELLS).expand(3, 1, 5, 7), torch.rand(5, 7) > 0.5)
    assert q.batch_shape == (3, 1, 5) and q.event_shape == (2,)


def test_linear_expert_is_linear_in_the_features(float64):
    enc = TableEncoder(COLUMNS, 2, hidden=())
    x = torch.tensor(CELLS).expand(2, 7)
    seen = torch.tensor([[True] * 7, [True, False] * 3 + [True]])
    features = ColumnFeatures(COLUMNS, mask=True)(x, seen)
    linear = enc.head.linear
    loc = (features @ linear.weight.T + linear.bias)[:, :2]
    torch.testing.assert_close(enc(x, seen).mean, loc, rtol=1e-12, atol=1e-12)


def test_what_the_mask_says_is_read():
    x = torch.tensor(CELLS).expand(2, 7)
    seen = torch.ones(2, 7, dtype=torch.bool)
    seen[1, 1] = False
    x = torch.where(seen, x, 50.0)  # the missing cell is where its standardized value is 0
    with_bits, without = encoder()(x, seen).mean, encoder(mask=False)(x, seen).mean
    middle = encoder(mask=False)(x, None).mean
    assert not torch.equal(with_bits[0], with_bits[1])
    torch.testing.assert_close(without[1], middle[1])


def test_context_reaches_the_expert():
    enc = encoder(context=[c.to_dict() for c in context().features.columns])
    x = torch.tensor(CELLS).expand(3, 7)
    q = enc(x, None, age=torch.tensor([40.0, 40.0, 70.0]), site=torch.zeros(3, dtype=torch.long))
    assert enc.covariates == ("age", "site") and encoder().covariates == () == encoder(context=[]).covariates
    torch.testing.assert_close(q.mean[0], q.mean[1])
    assert (q.mean[0] - q.mean[2]).abs().min() > 1e-3
    wide = enc(x.expand(4, 3, 7), None, age=torch.full((3,), 40.0), site=torch.zeros(3))
    torch.testing.assert_close(wide.mean[2, 0], q.mean[0])


def test_covariates_that_nobody_reads():
    with pytest.raises(ValueError, match=r"reads no covariates, got \['age'\]"):
        encoder()(torch.tensor(CELLS).expand(3, 7), age=torch.zeros(3))
    with pytest.raises(ValueError, match="context lacks"):
        encoder(context=context().features.columns)(torch.tensor(CELLS).expand(3, 7))


def test_input_dropout_takes_observed_cells_for_missing():
    enc = encoder(input_dropout=0.4)
    x, n = torch.tensor(CELLS).expand(4000, 7), 4000
    seen = torch.arange(7) != 1
    features = enc.features
    caught = []
    features.register_forward_pre_hook(lambda module, args: caught.append(args[1]))
    enc(x, seen)
    kept = caught[-1].float().mean(0)
    assert kept[1] == 0.0  # what is missing stays so
    error = (kept[seen] - 0.6) / (0.6 * 0.4 / n) ** 0.5
    assert error.abs().max() < 4.0  # standard errors
    enc.eval()
    enc(x, seen)
    assert caught[-1] is seen  # evaluation hides nothing


def test_input_dropout_is_a_share():
    with pytest.raises(ValueError, match=r"input_dropout must be in \[0, 1\), got 1.0"):
        encoder(input_dropout=1.0)


def test_rebuilt_from_json():
    enc = encoder(input_dropout=0.1, context=context().features.columns, family="laplace").eval()
    text = json.dumps(enc.config)
    copy = from_config(json.loads(text)).eval()
    copy.load_state_dict(enc.state_dict())
    x, covariates = torch.tensor(CELLS).expand(3, 7), {"age": torch.zeros(3), "site": torch.ones(3)}
    assert json.dumps(copy.config) == text
    assert torch.equal(copy(x, None, **covariates).mean, enc(x, None, **covariates).mean)
    assert copy.features.columns == tuple(COLUMNS)


def test_the_scaling_is_saved_with_the_weights():
    saved = encoder().state_dict()
    other = TableEncoder([Column(c.name, c.likelihood, c.levels) for c in COLUMNS], 2, hidden=(8,))
    other.load_state_dict(saved)
    x = torch.tensor(CELLS).expand(3, 7)
    assert torch.equal(other(x).mean, encoder()(x).mean)


def test_precision_and_device_of_the_parameters():
    enc = encoder(context=context().features.columns).double()
    q = enc(torch.tensor(CELLS).expand(3, 7), age=torch.zeros(3), site=torch.zeros(3, dtype=torch.long))
    assert q.mean.dtype == torch.float64
    with torch.device("meta"):  # a tensor created without a device would have no content
        q = enc(torch.zeros(3, 7, device="cpu"), age=torch.zeros(3, device="cpu"), site=torch.zeros(3, device="cpu"))
    assert q.mean.device.type == "cpu"
