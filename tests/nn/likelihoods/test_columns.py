"""The likelihood of a table: densities by scipy, gaps, normalization, units, saving, training."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from scipy import special, stats

import pyro_mmvae as mm
from pyro_mmvae.columns import Column, fitted
from pyro_mmvae.nn import Columns, MLPDecoder, MLPEncoder, TableEncoder, class_probabilities, expected, from_config
from pyro_mmvae.training.traced import TracedLoss

THREE, FOUR = ("a", "b", "c"), ("I", "II", "III", "IV")
COLUMNS = [
    Column("age", "normal", loc=50.0, scale=10.0),
    Column("sex", "categorical", ("f", "m")),
    Column("visits", "negative_binomial", loc=1.2, scale=0.8),
    Column("site", "categorical", THREE),
    Column("income", "laplace", loc=4e4, scale=2e4),
    Column("smoker", "bernoulli"),
    Column("stage", "ordinal", FOUR),
    Column("crp", "log_normal", loc=-1.0, scale=2.0),
    Column("reads", "zero_inflated_negative_binomial", loc=3.0, scale=1.5),
    Column("score", "student_t", loc=-3.0, scale=0.01),
    Column("weight", "normal", loc=70.0, scale=15.0),
    Column("cells", "poisson", loc=5.0, scale=0.1),
    Column("ward", "categorical", THREE),
    Column("grade", "ordinal", THREE),
    Column("only", "ordinal", ("one",)),
]
P = len(COLUMNS)
NUM_RAW = [{"categorical": len(c.levels), "zero_inflated_negative_binomial": 2}.get(c.likelihood, 1) for c in COLUMNS]
# places in the raw vector, written down: families in the order of their first column
FAMILIES = [("age", "weight"), ("sex",), ("visits",), ("site", "ward"), ("income",), ("smoker",), ("stage",), ("crp",)]
FAMILIES += [("reads",), ("score",), ("cells",), ("grade",), ("only",)]


def raw_places() -> dict[str, slice]:
    """Where the raw outputs of each column are."""
    sizes = {str(c.name): n for c, n in zip(COLUMNS, NUM_RAW, strict=True)}
    names = [name for family in FAMILIES for name in family]
    ends = list(itertools.accumulate(sizes[name] for name in names))
    return {name: slice(end - sizes[name], end) for name, end in zip(names, ends, strict=True)}


def family_and_rank(name: str) -> tuple[int, int]:
    return next((i, family.index(name)) for i, family in enumerate(FAMILIES) if name in family)


def built() -> Columns:
    """In double precision, its parameters away from where they start and different."""
    torch.manual_seed(0)
    lik = Columns(COLUMNS).double()
    for parameter in lik.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return lik


def cells(rows: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    draw = {
        "real": lambda c: rng.normal(c.loc, c.scale, rows),
        "positive": lambda c: np.exp(rng.normal(c.loc, c.scale, rows)),
        "count": lambda c: rng.poisson(np.expm1(c.loc), rows) * rng.integers(0, 2, rows),
        "binary": lambda c: rng.integers(0, 2, rows),
        "category": lambda c: rng.integers(0, len(c.levels), rows),
        "ordinal": lambda c: rng.integers(0, len(c.levels), rows),
    }
    return torch.as_tensor(np.stack([draw[c.kind](c) for c in COLUMNS], -1).astype(float))


def log_density(lik: Columns, raw: np.ndarray, x: np.ndarray) -> np.ndarray:  # shapes: (N, R), (N, P); (N, P)
    """Column by column, by scipy."""
    out = np.empty_like(x)
    for d, c in enumerate(COLUMNS):
        h, (number, rank) = raw[:, raw_places()[str(c.name)]], family_and_rank(str(c.name))
        own = {n: p.detach().numpy()[rank] for n, p in lik.groups[number].named_parameters()}
        out[:, d] = _log_density(c, h, x[:, d], own)
    return out


def _log_density(c: Column, h: np.ndarray, x: np.ndarray, own: dict[str, np.ndarray]) -> np.ndarray:
    if c.likelihood in ("normal", "laplace", "student_t", "log_normal"):
        loc, scale = c.loc + c.scale * h[:, 0], c.scale * (0.01 + np.exp(own["spread.log"]))
        return {
            "normal": lambda: stats.norm.logpdf(x, loc, scale),
            "laplace": lambda: stats.laplace.logpdf(x, loc, scale),
            "student_t": lambda: stats.t.logpdf(x, 4, loc, scale),
            "log_normal": lambda: stats.lognorm.logpdf(x, scale, scale=np.exp(loc)),
        }[c.likelihood]()
    if c.kind == "count":
        mean = np.expm1(c.loc)
        spread = max(c.scale, min(c.scale * (1 + mean) / mean, 1.0))
        mean = np.exp(np.log(mean) + spread * h[:, 0])
        if c.likelihood == "poisson":
            return stats.poisson.logpmf(x, mean)
        total = 1e-3 + np.exp(own["of_log_mean.total_count.log"])
        base = stats.nbinom.logpmf(x, total, total / (total + mean))
        if c.likelihood == "negative_binomial":
            return base
        gate = special.expit(h[:, 1])
        return np.log(gate * (x == 0) + (1 - gate) * np.exp(base))
    if c.kind == "binary":
        return stats.bernoulli.logpmf(x, special.expit(h[:, 0]))
    if c.kind == "category" or len(c.levels) == 1:
        return special.log_softmax(h, -1)[np.arange(len(x)), x.astype(int)]
    start = own["cumulative.cut_points.raw"]
    points = np.concatenate([start[:1], start[0] + (np.logaddexp(0, start[1:]) + 1e-3).cumsum()])
    ends = np.concatenate([[-np.inf], points, [np.inf]])
    x = x.astype(int)
    return np.log(special.expit(ends[x + 1] - h[:, 0]) - special.expit(ends[x] - h[:, 0]))


def test_density_by_scipy(float64):
    lik, x = built(), cells(50)
    raw = torch.randn(50, *lik.raw_shape())
    found = lik(raw).base_dist.log_prob(x).detach().numpy()
    np.testing.assert_allclose(found, log_density(lik, raw.numpy(), x.numpy()), rtol=1e-9, atol=1e-9)


def test_raw_outputs_are_one_vector():
    lik = Columns(COLUMNS)
    assert lik.raw_shape() == (sum(NUM_RAW),) == lik.raw_shape(P)
    assert lik.event_shape == (P,) and lik.factorizes and len(lik.groups) == len(FAMILIES)
    with pytest.raises(ValueError, match=r"15 columns have events of that size, got \(14,\)"):
        lik.raw_shape(14)
    with pytest.raises(ValueError, match="events of shape"):
        MLPDecoder(2, 14, likelihood=lik)


def test_a_thousand_columns_of_a_kind_are_one_distribution():
    lik = Columns([Column(i, "normal") for i in range(1000)])
    assert len(lik.groups) == 1 and lik.order is None
    assert len(lik(torch.zeros(3, 1000)).base_dist.parts) == 1


def test_raw_outputs_of_zero_are_the_middle_of_the_data():
    lik = Columns(COLUMNS)
    mean = dict(zip([c.name for c in COLUMNS], expected(lik(torch.zeros(lik.raw_shape()))).tolist(), strict=True))
    assert mean["age"] == 50.0 and mean["income"] == 4e4 and mean["smoker"] == 0.5
    assert mean["cells"] == pytest.approx(math.expm1(5.0), rel=1e-5)
    assert mean["crp"] == pytest.approx(math.exp(-1.0 + 2.0 * 1.0**2), rel=1e-2)  # the scale starts at its unit, 2


def test_expected_is_a_table_and_classes_have_probabilities():
    lik = built()
    fn = lik(torch.randn(4, 5, *lik.raw_shape(), dtype=torch.float64))
    assert expected(fn).shape == (4, 5, P)
    probs = class_probabilities(fn, "stage")
    assert probs.shape == (4, 5, 4) and torch.equal(class_probabilities(fn, 6), probs)
    assert torch.equal(expected(fn)[..., 6], probs.argmax(-1).double())
    with pytest.raises(ValueError, match="no column 'stag'"):
        class_probabilities(fn, "stag")
    with pytest.raises(TypeError, match="got Normal"):
        class_probabilities(pyro.distributions.Normal(0.0, 1.0), 0)


def test_probabilities_through_lazy_masked_and_expanded():
    decoder = MLPDecoder(2, P, likelihood=Columns(COLUMNS), hidden=())
    z = torch.randn(5, 2)
    plain = class_probabilities(decoder.dense(z), "site")
    assert torch.equal(class_probabilities(decoder(z), "site"), plain)
    assert torch.equal(class_probabilities(decoder.dense(z).mask(False).expand((2, 5)), "site")[1], plain)


@pytest.mark.parametrize("size", [1e1, 1e4, 1e12])
def test_gradients_and_draws_are_finite_for_wild_raw_outputs(size):
    lik, x = Columns(COLUMNS), cells(4).float()
    raw = (torch.randn(4, *lik.raw_shape()) * size).requires_grad_()
    fn = lik(raw)
    counts = [d for d, c in enumerate(COLUMNS) if c.kind in ("count", "positive")]
    assert bool(fn.base_dist.log_prob(x).isfinite()[:, counts].all())
    fn.base_dist.log_prob(x)[:, counts].sum().backward()
    assert bool(raw.grad.isfinite().all())
    assert bool(fn.sample().isfinite().all())


def test_constant_and_empty_columns_do_not_blow_up():
    """Every column constant, in the large and the small: the density is bounded by the floor of the scale."""
    names = [("x", "normal"), ("y", "laplace"), ("n", "negative_binomial"), ("c", "log_normal")]
    x = torch.tensor([1e6, 0.0, 0.0, 3e-7]).expand(8, 4)
    columns = fitted([Column(n, k) for n, k in names], x, torch.ones(8, 4, dtype=torch.bool))
    lik = Columns(columns)
    for parameter in lik.parameters():
        parameter.data -= 30.0  # as small as a scale can get
    score = lik(torch.zeros(8, 4)).base_dist.log_prob(x).detach()
    assert bool(score.isfinite().all()) and float(score.max()) < -math.log(1e-2 * 1e-3 * 3e-7) + 1.0


# --- in a model ---------------------------------------------------------------------------------------------------


def table_vae(columns=COLUMNS, latent_dim: int = 2, **options) -> mm.MultimodalVAE:
    torch.manual_seed(0)
    enc = {"table": TableEncoder(columns, latent_dim, hidden=(8,), **options), "y": MLPEncoder(2, latent_dim)}
    lik = Columns(columns)
    dec = {"table": MLPDecoder(latent_dim, len(columns), likelihood=lik, hidden=(8,)), "y": MLPDecoder(latent_dim, 2)}
    return mm.MVAE(enc, dec, latent_dim=latent_dim)


def batch(rows: int = 12) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    g = torch.Generator().manual_seed(1)
    mask = {"table": torch.rand(rows, P, generator=g) > 0.4, "y": torch.rand(rows, generator=g) > 0.4}
    mask["table"][:2] = False
    return {"table": cells(rows), "y": torch.randn(rows, 2, generator=g)}, mask


@pytest.mark.param_store
def test_elbo_of_a_table_with_gaps_is_a_loop(float64):
    vae = table_vae()
    data, mask = batch()
    pyro.set_rng_seed(5)
    loss = Trace_ELBO().loss(vae.model, vae.guide, data, mask)
    pyro.set_rng_seed(5)
    guide = poutine.trace(vae.guide).get_trace(data, mask)
    guide.compute_log_prob()
    z = guide.nodes["z"]["value"].detach()
    dec = vae.model.story.program.decoders["table"]
    raw = dec.net(z).detach().numpy()
    loc = vae.model.story.program.decoders["y"](z).mean.detach().numpy()
    table = log_density(dec.likelihood, raw, data["table"].numpy())
    total = -float(guide.nodes["z"]["log_prob"].detach().sum()) + float(stats.norm.logpdf(z.numpy()).sum())
    for n in range(len(z)):
        total += sum(table[n, d] for d in range(P) if mask["table"][n, d])
        total += stats.norm.logpdf(data["y"][n].numpy(), loc[n]).sum() if mask["y"][n] else 0.0
    assert loss == pytest.approx(-total, rel=1e-9)


@pytest.mark.parametrize("content", [math.nan, math.inf, 1e30, 0.0])
def test_content_of_missing_cells_never_matters(content):
    vae = table_vae(input_dropout=0.2)
    data, mask = batch()
    data["table"] = data["table"].float()
    data["y"] = data["y"].float()

    def loss_and_gradients(x: torch.Tensor) -> list[torch.Tensor]:
        pyro.set_rng_seed(0)
        vae.zero_grad()
        loss = vae.objective.differentiable_loss(vae.model, vae.guide, {**data, "table": x}, mask)
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in vae.parameters())]

    before = loss_and_gradients(data["table"])
    after = loss_and_gradients(torch.where(mask["table"], data["table"], content))
    assert all(bool(x.isfinite().all()) for x in before)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_recorded_steps_equal_eager_ones():
    vae = table_vae(input_dropout=0.2).double()
    data, mask = batch()
    prepared = vae.model.prepare({m: x.double() for m, x in data.items()}, mask)
    traced, losses, gradients = TracedLoss(vae), [], []
    for step in (
        traced,
        lambda *batch: vae.objective.differentiable_loss(vae.model, vae.guide, *batch),
    ):
        torch.manual_seed(0)
        vae.zero_grad()
        loss = step(*prepared)
        if loss.requires_grad:
            loss.backward()
        losses.append(loss.detach())
        gradients.append([p.grad.clone() for p in vae.parameters()])
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-10, atol=1e-10)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)
    assert traced.graphs


def test_a_marginal_of_a_mixed_table_adds_up_to_one(float64):
    """A linear decoder of one latent: quadrature over z and the real cell, sums over classes; gaps are marginals."""
    columns = [
        Column("x", "normal", loc=5.0, scale=2.0),
        Column("k", "categorical", THREE),
        Column("b", "bernoulli"),
        Column("o", "ordinal", THREE),
    ]
    decoder = MLPDecoder(1, 4, likelihood=Columns(columns), hidden=())
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    z, log_weight = torch.as_tensor(nodes).reshape(-1, 1, 1), torch.as_tensor(np.log(weights / weights.sum()))
    grid = torch.linspace(-35.0, 45.0, 801)  # 20 scales to either side: its step, .1, is far below the scale
    classes = torch.cartesian_prod(torch.arange(3.0), torch.arange(2.0), torch.arange(3.0))
    x = torch.cat([grid.repeat_interleave(18).unsqueeze(-1), classes.repeat(801, 1)], -1)

    def density(cells: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        with mm.handlers.observe({"t": cells}, {"t": mask}, ["t"]), torch.no_grad(), poutine.trace() as trace:
            with pyro.plate("z", len(z), dim=-2), pyro.plate("data", len(cells), dim=-1):
                pyro.sample("t", decoder(z.expand(-1, len(cells), 1)))
        trace.trace.compute_log_prob()
        return (trace.trace.nodes["t"]["log_prob"] + log_weight.unsqueeze(-1)).logsumexp(0).exp()

    whole = density(x, torch.ones(len(x), 4, dtype=torch.bool)).reshape(801, 3, 2, 3)
    assert float(whole.sum() * 0.1) == pytest.approx(1.0, abs=1e-10)  # the trapezoid rule is exact for such tails
    seen = torch.tensor([True, False, True, False])
    some = density(x, seen.expand(len(x), 4)).reshape(801, 3, 2, 3)
    torch.testing.assert_close(some[:, 0, :, 0], whole.sum((1, 3)), rtol=1e-10, atol=1e-14)


def test_other_units_shift_the_density_by_their_logarithm(float64):
    names = [("a", "normal"), ("b", "laplace"), ("c", "student_t")]
    plain = [Column(n, k) for n, k in names] + [Column("k", "categorical", THREE)]
    x = torch.cat([torch.randn(300, 3), torch.randint(0, 3, (300, 1)).double()], -1)
    seen = torch.rand(300, 4) > 0.3
    moved = x.clone()
    moved[:, :3] = x[:, :3] * 1000 + 5e4
    raw, scores = torch.randn(300, 6), []
    for cells_ in (x, moved):
        lik = Columns(fitted(plain, cells_, seen))
        fn = mm.distributions.mask_event(lik(raw), seen, "table")
        scores.append(fn.log_prob(cells_))
    shift = math.log(1000) * seen[:, :3].sum(-1)
    torch.testing.assert_close(scores[1], scores[0] - shift, rtol=0, atol=1e-8)  # cells of 5e4 are known to 7e-12


def test_rebuilt_from_json_with_the_same_density():
    lik = built()
    copy = from_config(json.loads(json.dumps(lik.config))).double()
    copy.load_state_dict(lik.state_dict())
    raw, x = torch.randn(6, *lik.raw_shape(), dtype=torch.float64), cells(6)
    assert copy.columns == tuple(COLUMNS) and torch.equal(copy(raw).log_prob(x), lik(raw).log_prob(x))


def test_precision_and_device_of_the_parameters():
    lik = Columns(COLUMNS)
    raw, x = torch.zeros(3, *lik.raw_shape()), cells(3).float()
    with torch.device("meta"):  # a tensor created without a device would have no content
        fn = lik(raw)
        assert fn.log_prob(x).device.type == "cpu"
        assert fn.mean.device.type == "cpu" and fn.sample().dtype == torch.float32
    assert lik(raw.bfloat16()).log_prob(x).dtype == torch.float32  # never in half precision


def test_fit_impute_and_load(tmp_path):
    x, seen = cells(120).float(), torch.rand(120, P, generator=torch.Generator().manual_seed(0)) > 0.3
    columns = fitted(COLUMNS, x, seen)
    ds = mm.MultimodalDataset({"table": torch.where(seen, x, torch.nan), "y": torch.randn(120, 2)})
    vae = table_vae(columns, input_dropout=0.1)
    history = mm.fit(vae, ds, epochs=8, batch_size=40, lr=1e-2, progress=False, seed=0)
    assert history["loss"][-1] < history["loss"][0]
    full = vae.impute(ds, num_samples=4)["table"]
    assert full.shape == (4, 120, P) and bool(Columns(columns).support().check(full).all())
    assert torch.equal(full[:, seen], x[seen].expand(4, -1))
    vae.save(tmp_path / "model")
    again = mm.load(tmp_path / "model")
    for options in ({"noise": False}, {"noise": True}):
        pyro.set_rng_seed(0)
        first = vae.impute(ds, num_samples=2, **options)["table"]
        pyro.set_rng_seed(0)
        assert torch.equal(again.impute(ds, num_samples=2, **options)["table"], first)


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("site", 3.0, "column 'site': value 3.0 lies outside its support; categorical takes the number of one of"),
        ("stage", 0.5, "column 'stage': value 0.5 lies outside its support; ordinal takes the number of one of its 4"),
        ("smoker", 2.0, "column 'smoker': value 2.0 lies outside its support; bernoulli takes 0 or 1"),
        ("cells", -1.0, r"column 'cells': value -1.0 lies outside its support; poisson takes 0, 1, 2, ..."),
        ("crp", 0.0, "column 'crp': value 0.0 lies outside its support; log_normal takes a number above 0"),
        ("age", math.nan, "column 'age': value nan is NaN or infinite where obs_mask says it is observed"),
    ],
)
def test_cells_that_a_column_cannot_hold(column, value, says):
    data = {"table": cells(3).float(), "y": torch.zeros(3, 2)}
    data["table"][1, [c.name for c in COLUMNS].index(column)] = value
    with pytest.raises(ValueError, match=r"data\['table'\] row 1, " + says):
        table_vae().posterior(data, {"table": torch.ones(3, P, dtype=torch.bool)})


def test_columns_are_named_once():
    with pytest.raises(ValueError, match="different names"):
        Columns([COLUMNS[0], COLUMNS[0]])
