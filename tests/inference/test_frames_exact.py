"""The verbs on tables against closed forms, in the units of the tables."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
import pyro
import pytest
import torch

import pyro_mmvae as mm
from pyro_mmvae.columns import fitted
from pyro_mmvae.inference import frames as verbs
from tests.inference.tables import exact_cells, exact_pair, linear_frames, linear_tables, simulated

from_frames = mm.MultimodalDataset.from_frames
pytestmark = pytest.mark.usefixtures("float64")
NORMAL = torch.distributions.Normal(0.0, 1.0)


def test_imputations_against_the_exact_conditional() -> None:
    case, draws = linear_tables(), 4000
    full = case.vae.impute(case.ds, num_samples=draws)
    low, high = full.interval(0.9)
    reach = 1.6448536269514722
    end_error = math.sqrt(0.05 * 0.95 / draws) / NORMAL.log_prob(torch.tensor(reach)).exp().item()  # of a quantile
    for m, frame in full.mean.items():
        gaps = torch.tensor(case.ds.frames.original[m].isna().to_numpy())
        mean, sd, through = (x[gaps] for x in exact_cells(case, m))
        made = {k: torch.tensor(f[m].to_numpy())[gaps] for k, f in (("sd", full.sd), ("low", low), ("high", high))}
        off = (torch.tensor(frame.to_numpy())[gaps] - mean) / through * math.sqrt(draws)
        assert off.abs().max() < 4.5 and 0.8 < off.square().mean().sqrt() < 1.2  # standard errors; about 100 gaps
        assert ((made["sd"] / sd - 1) * math.sqrt(2 * draws)).abs().max() < 4.5
        for end, sign in (("low", -1), ("high", 1)):
            assert ((made[end] - mean - sign * reach * sd) / sd / end_error).abs().max() < 4.5


def test_log_likelihood_is_a_series_in_the_units_of_the_data() -> None:
    case = linear_tables()
    masks = {m: x.reshape(len(x), -1).expand_as(case.ds.data[m]) for m, x in case.ds.obs_mask.items()}
    found = case.vae.log_likelihood(case.ds, num_particles=2)  # the guide is exact: one particle is enough
    want = case.truth.log_evidence(case.ds.data, masks)
    assert isinstance(found, pd.Series) and found.index.equals(case.ds.frames.index)
    torch.testing.assert_close(torch.tensor(found.to_numpy()), want, rtol=1e-9, atol=1e-9)
    hidden = {"lab": masks["lab"], "genes": torch.zeros_like(masks["genes"])}
    part = case.vae.log_likelihood(case.ds, target={"genes"}, num_particles=2)
    genes = {"lab": torch.zeros_like(masks["lab"]), "genes": masks["genes"]}
    want = case.truth.conditional_log_evidence(case.ds.data, genes, hidden)
    torch.testing.assert_close(torch.tensor(part.to_numpy()), want, rtol=1e-9, atol=1e-9)
    table = case.vae.log_likelihood(case.ds, num_particles=2, diagnostics=True)
    assert list(table) == ["value", "standard_error", "ess", "pareto_k"] and table.index.equals(found.index)


def test_posterior_means_in_a_frame() -> None:
    case = linear_tables()
    masks = {m: x.reshape(len(x), -1).expand_as(case.ds.data[m]) for m, x in case.ds.obs_mask.items()}
    loc, cov = case.truth.posterior(case.ds.data, masks)
    q = case.vae.posterior(case.ds)
    table = q.to_frame()
    assert list(table) == ["z_0", "z_1", "z_0_sd", "z_1_sd"] and table.index.equals(case.ds.frames.index)
    want = torch.cat([loc, cov.diagonal(dim1=-2, dim2=-1).sqrt()], -1)
    torch.testing.assert_close(torch.tensor(table.to_numpy()), want, rtol=1e-9, atol=1e-9)
    assert q.sample((3,)).shape == (3, 30, 2) and q.log_prob(q.mean).shape == (30,)
    parts = case.vae.posterior(case.ds, batch_size=7, progress=False).to_frame()
    pd.testing.assert_frame_equal(parts, table, rtol=1e-12)


@pytest.mark.parametrize("draws", [1, 2, 5, 18, 19, 40, 200])
def test_intervals_cover(draws: int) -> None:
    rows = 1500
    frames, _ = linear_frames(rows, 0.0)
    vae, truth = exact_pair(from_frames(frames), 0)
    complete = simulated(truth, frames, 7)
    columns = complete["lab"].columns
    holes = {"lab": complete["lab"].copy(), "genes": complete["genes"]}
    for i in range(rows):  # one gap in each row, so that they are independent
        holes["lab"].iloc[i, i % 3] = float("nan")
    low, high = vae.impute(from_frames(holes), num_samples=draws).interval(0.9)
    gaps = holes["lab"].isna().to_numpy()
    inside = (low["lab"] <= complete["lab"]) & (complete["lab"] <= high["lab"])
    share = inside.to_numpy()[gaps].mean()
    slack = 0.02 if draws == 1 else 0.005  # the mean of a single draw of z is no fixed center
    assert abs(share - 0.9) < 4 * math.sqrt(0.09 / rows) + slack, (share, list(columns))


@pytest.mark.parametrize("unit", [1.0, 1e-6])
def test_other_units_give_scaled_answers(unit: float) -> None:
    frames, _ = linear_frames(25, 0.3)
    frames["lab"] = (frames["lab"] - frames["lab"].mean()) * unit
    answers = []
    for factor, shift in ((1.0, 0.0), (1000.0, -40.0 * unit)):
        ds = from_frames({**frames, "lab": frames["lab"] * factor + shift})
        pyro.set_rng_seed(3)
        vae = mm.MVAE.for_data(ds, latent_dim=2)
        full = vae.impute(ds, num_samples=30)
        answers.append((full, full.interval(0.8), vae.log_likelihood(ds, num_particles=5)))
    (one, (low, high), ll), (other, (other_low, other_high), other_ll) = answers
    for a, b in ((one.mean, other.mean), (low, other_low), (high, other_high), (one.draws, other.draws)):
        pd.testing.assert_frame_equal(a["lab"] * 1000.0 - 40.0 * unit, b["lab"], rtol=1e-9, atol=1e-9 * unit)
        pd.testing.assert_frame_equal(a["genes"], b["genes"], rtol=1e-9)
    pd.testing.assert_frame_equal(one.sd["lab"] * 1000.0, other.sd["lab"], rtol=1e-9)
    seen = frames["lab"].notna().sum(axis=1).reindex(ll.index, fill_value=0)
    pd.testing.assert_series_equal(ll - seen * math.log(1000.0), other_ll, rtol=1e-9, check_names=False)


def test_nothing_observed_is_the_prior_predictive() -> None:
    frames, _ = linear_frames(12, 0.0)
    frames = {m: frame.copy() for m, frame in frames.items()}
    for frame in frames.values():
        frame.iloc[3] = float("nan")
    ds = from_frames(frames)
    vae, truth = exact_pair(ds, 0)
    draws = 4000
    full = vae.impute(ds, num_samples=draws)
    for m, weights in truth.weights.items():
        sd = (weights.square().sum(-1) + truth.noise[m] ** 2).sqrt()
        row = torch.tensor(full.mean[m].iloc[3].to_numpy())
        assert ((row - truth.bias[m]) / sd).abs().max() < 4.5 / math.sqrt(draws)
        made = torch.tensor(full.sd[m].iloc[3].to_numpy())
        assert ((made / sd - 1) * math.sqrt(2 * draws)).abs().max() < 4.5
    assert vae.log_likelihood(ds, num_particles=3).iloc[3] == 0.0


class PriorGuide(torch.nn.Module):
    """The posterior where the data say nothing about z."""

    def forward(self, data: Mapping[str, torch.Tensor], obs_mask: Mapping[str, torch.Tensor]) -> None:
        like = next(iter(obs_mask.values()))
        with pyro.plate("data", len(like), dim=-1):
            pyro.sample("z", pyro.distributions.Normal(torch.zeros(2), 1.0).to_event(1))


def test_mixed_columns_against_probabilities_known() -> None:
    """Decoders that do not look at z: each column is what its raw outputs say."""
    levels, draws = ["a", "b", "c"], 4000
    frame = pd.DataFrame(
        {
            "n": pd.array([3, None, 0, 2, 12, 3], "Int64"),
            "flag": pd.array([True, None, False, True, False, True], "boolean"),
            "class": pd.Categorical(["a", None, "b", "c", "a", "b"], categories=levels),
            "order": pd.Categorical(["b", None, "c", "a", "a", "b"], categories=levels, ordered=True),
            "rate": [0.5, float("nan"), 1.0, 2.0, 7.0, 0.1],
        }
    )
    ds = from_frames({"t": frame}, likelihoods={"t": {"n": "poisson", "rate": "log_normal", "flag": "bernoulli"}})
    columns = fitted(ds.frames.columns["t"], ds.data["t"], ds.obs_mask["t"])
    decoder = mm.nn.LinearDecoder(2, 5, likelihood=mm.nn.Columns(columns))
    with torch.no_grad():
        decoder.net[0].weight.zero_()
    p = decoder.dense(torch.zeros(2))
    model = mm.observe(mm.stories.Shared({"t": decoder}, mm.stories.NormalPrior(2)), ("t",))
    vae = mm.MultimodalVAE(model, PriorGuide())
    full = vae.impute(ds, num_samples=draws)
    chances = {name: mm.nn.class_probabilities(p, name).detach() for name in ("flag", "class", "order")}
    for name, want in chances.items():
        shares = torch.tensor(full.probabilities("t", name).loc[1].to_numpy())
        assert (shares - want).abs().max() < 4 * 0.5 / math.sqrt(draws)
    row, sd = full.mean["t"].loc[1], full.sd["t"].loc[1]
    assert row["flag"] == bool(chances["flag"][1] > 0.5)
    assert row["class"] == levels[int(chances["class"].argmax())]
    assert row["order"] == levels[int(chances["order"].argmax())]
    count, rate = p.mean[0].item(), p.mean[4].item()
    assert row["n"] == round(count) and row["rate"] == pytest.approx(rate)
    assert sd["n"] == pytest.approx(math.sqrt(count), rel=0.1)  # Poisson; about 5 standard errors
    low, high = full.interval(0.9)
    below = torch.distributions.Poisson(torch.tensor(count)).log_prob(torch.arange(60.0)).exp().cumsum(0)
    for end, q in ((low, 0.05), (high, 0.95)):
        k, slack = int(end["t"].loc[1, "n"]), 4 * math.sqrt(0.05 * 0.95 / draws)
        assert (below[k - 1].item() if k else 0.0) <= q + slack and below[k].item() >= q - slack
        assert end["t"].loc[1, "order"] in levels and isinstance(end["t"].loc[1, "n"], int | np.integer)
    log_rate = torch.tensor([c.loc for c in columns])[4] + columns[4].scale * decoder.net[0].bias[-1].detach()
    assert math.log(low["t"].loc[1, "rate"]) < log_rate < math.log(high["t"].loc[1, "rate"])
    found = vae.log_likelihood(ds, num_particles=1)
    want = p.log_prob(torch.where(ds.obs_mask["t"][:, None], ds.data["t"], 1.0)).detach()
    torch.testing.assert_close(torch.tensor(found.drop(1).to_numpy()), want[[0, 2, 3, 4, 5]])
    flag, order = chances["flag"].log(), chances["order"].log()
    by_hand = flag[1] + chances["class"][0].log() + order[1] - count + 3 * math.log(count) - math.log(6)
    by_hand = by_hand + log_normal(0.5, log_rate, columns[4].scale)
    assert found[0] == pytest.approx(by_hand.item()) and found[1] == 0.0


def log_normal(x: float, loc: torch.Tensor, scale: float) -> torch.Tensor:
    """The log-density, with the spread that a new likelihood has: that of the column."""
    return torch.distributions.LogNormal(loc, torch.tensor(scale)).log_prob(torch.tensor(x))


def test_a_native_model_gets_all_rows_at_once() -> None:
    """A program with a plate of its own, for exactly these rows."""
    frames = linear_frames(10, 0.0)[0]
    ds = from_frames(frames)

    def model(data: Mapping[str, torch.Tensor], obs_mask: Mapping[str, torch.Tensor]) -> None:
        with pyro.plate("data", 10, dim=-1):
            z = pyro.sample("z", pyro.distributions.Normal(torch.zeros(2), 1.0).to_event(1))
            for m, width in (("lab", 3), ("genes", 4)):
                loc = z[..., :1].expand(*z.shape[:-1], width)
                pyro.sample(m, pyro.distributions.Normal(loc, 1.0).to_event(1), obs=data[m], obs_mask=obs_mask[m])

    vae = mm.MultimodalVAE(mm.handlers.marginalize_missing(model), PriorGuide())
    full = vae.impute(ds, num_samples=3, batch_size=4)
    assert full.mean["genes"].notna().all(axis=None) and full.gaps["genes"].cells.sum() == 2 * 4
    assert len(vae.posterior(ds, batch_size=4).to_frame()) == 10
    assert vae.log_likelihood(ds, num_particles=3, batch_size=4).notna().all()


def test_given_moves_the_imputation() -> None:
    case = linear_tables()
    masks = {m: x.reshape(len(x), -1).expand_as(case.ds.data[m]) for m, x in case.ds.obs_mask.items()}
    loc, cov = case.truth.posterior(case.ds.data, {**masks, "genes": torch.zeros_like(masks["genes"])})
    weights, draws = case.truth.weights["genes"], 2000
    found = case.vae.impute(case.ds, num_samples=draws, given={"lab"}, target={"genes"}).mean["genes"]
    through = torch.einsum("pd,nde,pe->np", weights, cov, weights).sqrt()
    off = (torch.tensor(found.to_numpy()) - loc @ weights.T - case.truth.bias["genes"]) / through * math.sqrt(draws)
    assert off.abs().max() < 4.8  # standard errors, 120 cells


def test_batches_have_the_same_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    case = linear_tables(20)
    monkeypatch.setattr(verbs, "_NUMBERS", 1500 * 7 * 6)  # tables too wide to be drawn at once: blocks of 6 rows
    found = case.vae.impute(case.ds, num_samples=1500, progress=False).mean["genes"]
    mean, _, through = exact_cells(case, "genes")
    gaps = torch.tensor(case.ds.frames.original["genes"].isna().to_numpy())
    assert (((torch.tensor(found.to_numpy()) - mean) / through)[gaps] * math.sqrt(1500)).abs().max() < 4.5
