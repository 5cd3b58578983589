"""The verbs on tables: what came in comes out, its index, columns, dtypes and cells."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import pyro
import pytest
import torch

import pyro_mmvae as mm
from pyro_mmvae.inference import frames as verbs
from tests.datasets.test_frames import mixed
from tests.inference.tables import linear_frames, linear_tables

from_frames = mm.MultimodalDataset.from_frames


def cohort(rows: int = 30) -> mm.MultimodalDataset:
    """Two tables of mixed columns, with gaps, rows that are only in one of them, and covariates."""
    frame = mixed(rows)
    other = frame[["float", "category", "ordered", "bool", "gappy"]].iloc[: rows - 6]
    context = pd.DataFrame({"age": range(rows), "site": pd.Categorical(["A", "B"] * (rows // 2))}, index=frame.index)
    return from_frames({"a": frame, "b": other}, context=context)


@pytest.mark.parametrize("rows", [slice(None), [7, 2, 29, 3], slice(26, 30)], ids=["all", "some", "absent in b"])
def test_observed_cells_are_bit_equal(rows: slice | list[int]) -> None:
    ds = cohort()[rows]
    vae = mm.MVAE.for_data(cohort(), latent_dim=2)
    full = vae.impute(ds, num_samples=4)
    for m, came in ds.frames.original.items():
        seen = came.notna()
        source = ds.frames.table(m).source.dtypes
        for made in (full.mean[m], full.draw(2)[m], full.draws[m].loc[3], *(e[m] for e in full.interval())):
            assert made.index.equals(came.index) and made.columns.equals(came.columns)
            for label in came.columns:
                pd.testing.assert_extension_array_equal(*(
                    pd.array(frame.loc[seen[label], label].astype(object), dtype=object) for frame in (made, came)
                ))
        for table in (full.mean[m], full.draws[m]):
            assert table.dtypes.equals(source) and table.notna().all(axis=None)
        spread = full.sd[m]
        assert spread.index.equals(came.index) and (spread.to_numpy()[seen.to_numpy()] == 0).all()
    assert (full.mean["a"]["int"] == ds.frames.original["a"]["int"]).all()  # above 2**53


def test_draws_are_the_single_draws_one_after_the_other() -> None:
    floats = linear_tables(12)
    for vae, ds in ((mm.MVAE.for_data(cohort(), latent_dim=2), cohort()), (floats.vae, floats.ds)):
        full = vae.impute(ds, num_samples=3)
        for m, long in full.draws.items():
            assert long.index.names == ["draw", ds.frames.index.name] and len(long) == 3 * len(ds)
            for i in range(3):
                pd.testing.assert_frame_equal(long.loc[i], full.draw(i)[m], check_exact=True)
    with pytest.raises(IndexError, match="draw 3 of 3"):
        full.draw(3)


def test_given_target_and_predict() -> None:
    ds = cohort()
    vae = mm.MVAE.for_data(ds, latent_dim=2)
    one = vae.impute(ds, num_samples=3, given={"a"})
    came = ds.frames.original
    assert one.gaps["b"].cells.all() and not one.gaps["a"].cells.all()  # observed, but not given: predicted
    assert (one.sd["b"]["float"] > 0).all() and (one.mean["b"]["float"] != came["b"]["float"]).all()
    assert list(vae.impute(ds, num_samples=2, target={"b"}).mean) == ["b"]
    assert all(g.cells.all() for g in vae.predict(ds, num_samples=2).gaps.values())
    everything = vae.impute(ds, num_samples=2, given=())
    assert all(g.cells.all() for g in everything.gaps.values())


def test_rows_and_batches_change_nothing() -> None:
    case = linear_tables(23)
    whole = case.vae.posterior(case.ds).to_frame()
    order = list(reversed(range(23)))
    pd.testing.assert_frame_equal(case.vae.posterior(case.ds[order]).to_frame(), whole.iloc[order], rtol=1e-5)
    full = case.vae.impute(case.ds, num_samples=3, batch_size=5, progress=False)
    for m, came in case.ds.frames.original.items():
        assert full.mean[m].shape == came.shape and full.gaps[m].draws.shape == (3, int(came.isna().sum().sum()))
        assert (full.mean[m].to_numpy() == came.to_numpy())[came.notna().to_numpy()].all()
    a, b = (case.vae.log_likelihood(case.ds, batch_size=n, num_particles=2, progress=False) for n in (4, 512))
    pd.testing.assert_series_equal(a, b, rtol=1e-3)  # single precision


def test_progress_is_shown_where_there_are_several_batches(capsys: pytest.CaptureFixture[str]) -> None:
    case = linear_tables(9)
    for verb, options in (("impute", {"num_samples": 2}), ("posterior", {}), ("log_likelihood", {"num_particles": 2})):
        run = getattr(case.vae, verb)
        run(case.ds, batch_size=4, **options)
        assert "3/3" in capsys.readouterr().err, verb
        run(case.ds, batch_size=4, progress=False, **options)
        run(case.ds, **options)
        assert capsys.readouterr().err == "", verb


def test_a_single_row_a_single_draw_and_no_gap() -> None:
    ds = cohort()
    vae = mm.MVAE.for_data(ds, latent_dim=2)
    for part, draws in ((ds[:1], 3), (ds, 1), (ds.complete_cases(), 2)):
        full = vae.impute(part, num_samples=draws)
        low, high = full.interval(0.5)
        for m in ("a", "b"):
            assert full.mean[m].shape == low[m].shape == high[m].shape == full.sd[m].shape
            assert len(full.draws[m]) == draws * len(part)
        assert len(vae.log_likelihood(part, num_particles=2)) == len(vae.posterior(part).to_frame()) == len(part)
    full = vae.impute(ds.complete_cases(), num_samples=2)
    for m, came in ds.complete_cases().frames.original.items():
        pd.testing.assert_frame_equal(full.mean[m], came, check_exact=True)
        pd.testing.assert_frame_equal(full.interval(0.9).lower[m], came, check_exact=True)
        pd.testing.assert_frame_equal(full.draws[m].loc[1], came, check_exact=True)
        assert (full.sd[m] == 0).all(axis=None)


def test_a_test_cohort_that_lacks_a_table_and_classes() -> None:
    train = cohort()
    vae = mm.MVAE.for_data(train, latent_dim=2)
    frame = mixed(10).drop(columns=["Float64", "int8"])
    frame["category"] = frame["category"].cat.remove_categories("B")
    context = pd.DataFrame({"age": 1.5, "site": pd.Categorical(["B"] * 10)}, index=frame.index)
    test = from_frames({"a": frame}, context=context, like=train)
    full = vae.impute(test, num_samples=5)
    for m in ("a", "b"):
        assert full.mean[m].dtypes.equals(train.frames.table(m).source.dtypes)
        assert full.mean[m].index.equals(frame.index) and full.mean[m].notna().all(axis=None)
    assert (full.sd["b"]["float"] > 0).all() and (full.sd["a"][["Float64", "int8"]] > 0).all(axis=None)
    assert list(full.probabilities("a", "category")) == ["A", "B", "C"]


def test_a_saved_model_answers_the_same(tmp_path: object) -> None:
    ds = cohort()
    vae = mm.MVAE.for_data(ds, latent_dim=2)
    vae.save(tmp_path)  # type: ignore[arg-type]
    answers = []
    for own in (vae, mm.load(tmp_path)):  # type: ignore[arg-type]
        pyro.set_rng_seed(5)
        answers.append((own.impute(ds, num_samples=3), own.log_likelihood(ds, num_particles=3)))
    (one, ll), (other, other_ll) = answers
    for m in ("a", "b"):
        pd.testing.assert_frame_equal(one.draws[m], other.draws[m], check_exact=True)
    pd.testing.assert_series_equal(ll, other_ll, check_exact=True)


def test_inference_data_has_ids_and_columns() -> None:
    ds = cohort(12)
    idata = mm.MVAE.for_data(ds, latent_dim=2).to_inference_data(ds, num_samples=4)
    drawn = idata.posterior_predictive["b"]
    assert drawn.dims == ("chain", "draw", "sample", "b_dim_0")
    assert drawn.coords["sample"].values.tolist() == list(ds.frames.index)
    assert drawn.coords["b_dim_0"].values.tolist() == [c.name for c in ds.frames.columns["b"]]
    assert idata.observed_data["b"].sel(sample="s0", b_dim_0="float").item() == ds.data["b"][0, 0].item()
    named = mm.MVAE.for_data(ds, latent_dim=2).to_inference_data(ds, num_samples=2, dims={"b": ["field"]})
    assert named.posterior_predictive["b"].coords["field"].values.tolist()[0] == "float"


@pytest.mark.parametrize("kind", ["several levels", "dates", "numbers"])
def test_any_index(kind: str) -> None:
    frame = linear_frames(12, 0.3)[0]["lab"]
    index = {
        "several levels": pd.MultiIndex.from_product([["north", "south"], range(6)], names=["ward", "bed"]),
        "dates": pd.date_range("2024-01-01", periods=12, name="day"),
        "numbers": pd.Index(range(100, 112)),
    }[kind]
    ds = from_frames({"lab": frame.set_axis(index)})
    vae = mm.MVAE.for_data(ds, latent_dim=1)
    full = vae.impute(ds, num_samples=2)
    for table in (full.mean["lab"], full.sd["lab"], vae.posterior(ds).to_frame(), vae.log_likelihood(ds)):
        assert table.index.equals(index) and table.index.names == index.names
    assert full.draws["lab"].index.names == ["draw", *index.names]
    assert vae.to_inference_data(ds, num_samples=2).posterior_predictive["lab"].shape == (1, 2, 12, 3)


def test_clusters_are_a_series() -> None:
    ds = from_frames(linear_frames(12, 0.3)[0])
    decoders = {m: mm.nn.MLPDecoder(2, ds.data[m].shape[1], likelihood="normal") for m in ds.modalities}
    encoders = {m: mm.nn.MLPEncoder(ds.data[m].shape[1], 2) for m in ds.modalities}
    model = mm.observe(mm.stories.Shared(decoders, mm.stories.MixturePrior(2, 3)), ds.modalities)
    vae = mm.MultimodalVAE(model, mm.guides.Product(model, encoders))
    clusters, shares = vae.predict_clusters(ds, return_probabilities=True, batch_size=5, progress=False)
    assert clusters.index.equals(ds.frames.index) and shares.shape == (12, 3)
    torch.testing.assert_close(torch.tensor(shares.to_numpy()).sum(1), torch.ones(12))
    assert vae.predict_clusters(ds).index.equals(ds.frames.index)


def test_another_default_device_changes_nothing() -> None:
    case, ds = linear_tables(9), cohort()
    made = [case.vae.impute(case.ds, num_samples=3), mm.MVAE.for_data(ds, latent_dim=2).impute(ds, num_samples=3)]
    try:
        torch.set_default_device("meta")  # a tensor created without a device would have no content
        shares = made[1].probabilities("b", "category")
        full, _ = made
        [(own.mean, own.sd, own.draws, own.interval(0.5)) for own in made]
        tables = [full.mean, full.sd, full.draws, *full.interval(0.9)]
    finally:
        torch.set_default_device(None)
    assert all(table[m].notna().all(axis=None) for table in tables for m in table)
    assert ((shares.sum(axis=1) - 1).abs() < 1e-12).all()


def test_latents_keep_their_names() -> None:
    class Growth(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Linear(2, 3)

        def forward(self) -> None:
            z = pyro.sample("growth", pyro.distributions.Normal(self.net.weight.new_zeros(2), 1.0).to_event(1))
            pyro.sample("lab", pyro.distributions.Normal(self.net(z), 1.0).to_event(1))

    ds = from_frames({"lab": linear_frames(6, 0.3)[0]["lab"]})
    model = mm.observe(Growth(), ("lab",))
    vae = mm.MultimodalVAE(model, mm.guides.Product(model, {"growth": {"lab": mm.nn.MLPEncoder(3, 2)}}))
    assert list(vae.posterior(ds).to_frame()) == ["growth_0", "growth_1", "growth_0_sd", "growth_1_sd"]
    assert list(vae.posterior(ds, latents="all")["growth"].to_frame()) == list(vae.posterior(ds).to_frame())


class WithMu(torch.nn.Module):
    """A guide with a latent of the whole data set beside that of the rows."""

    def __init__(self, guide: torch.nn.Module) -> None:
        super().__init__()
        self.guide = guide

    def forward(self, data: Mapping[str, torch.Tensor], obs_mask: Mapping[str, torch.Tensor]) -> None:
        pyro.sample("mu", pyro.distributions.Normal(0.5, 1.0))
        self.guide(data, obs_mask)


def test_a_latent_of_the_whole_data_set_has_no_rows() -> None:
    case = linear_tables(10)
    found = verbs.posterior(
        case.vae.model, WithMu(case.vae.guide), case.ds, latents="all", batch_size=4, progress=False
    )
    assert found["z"].to_frame().shape == (10, 4) and found["mu"].mean == 0.5
    with pytest.raises(ValueError, match=r"latent 'mu': batch shape \(\), not one entry for each of the 10 rows"):
        found["mu"].to_frame()


def test_posteriors_without_a_mean_say_so() -> None:
    base = pyro.distributions.Normal(torch.zeros(3), 1.0)
    flow = pyro.distributions.TransformedDistribution(base, [torch.distributions.transforms.ExpTransform()])
    for q in (flow, pyro.distributions.Categorical(logits=torch.zeros(3, 2))):
        with pytest.raises(NotImplementedError, match="latent 'c': its posterior has no mean"):
            verbs.PosteriorTable(q, pd.RangeIndex(3), "c").to_frame()


# ---- errors


def test_errors_name_the_way_out() -> None:
    ds = cohort()
    vae = mm.MVAE.for_data(ds, latent_dim=2)
    for options, kind, message in (
        ({"given": "a"}, TypeError, "Fix: given={'a'}"),
        ({"target": {"q"}}, ValueError, "target: .*'q'"),
        ({"num_samples": 0}, ValueError, "at least 1"),
        ({"num_samples": 2.5}, TypeError, "num_samples: expected a whole number"),
        ({"batch_size": 0}, ValueError, "batch_size"),
    ):
        with pytest.raises(kind, match=message):
            vae.impute(ds, **options)
    with pytest.raises(TypeError, match="a dataset has its own"):
        vae.impute(ds, ds.obs_mask)
    tensors = mm.MultimodalDataset({"a": torch.zeros(3, 2)})
    for verb in (verbs.impute, verbs.predict, verbs.posterior, verbs.log_likelihood, verbs.to_inference_data):
        with pytest.raises(TypeError, match=r"made by MultimodalDataset\.from_frames"):
            verb(vae.model, vae.guide, tensors)
