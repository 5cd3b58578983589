"""The quickstart on tables: what is read from CSV files, what is written, the table of held-out cells, errors."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_mmvae.datasets import MultimodalDataset, synthetic_cohort
from pyro_mmvae.quickstart import __main__ as quickstart
from pyro_mmvae.quickstart.cohort import baselines, command, hiding, report
from pyro_mmvae.quickstart.cohort.encoding import Encoding

pandas = pytest.importorskip("pandas")

TCGA = Path(__file__).parents[2] / "shared" / "data" / "tcga_brca"
MODALITIES = ("mrna", "protein", "clinical")
OVERRIDES = ["--likelihood", "clinical.crp=log_normal", "clinical.stage=ordinal", "--likelihood", "protein=laplace"]


def write_cohort(ds: MultimodalDataset, folder: Path) -> list[str]:
    """The tables of a simulated cohort as files; paths of the modalities."""
    for m, frame in ds.frames.original.items():
        frame[ds.obs_mask[m].reshape(len(ds), -1).any(-1).numpy()].to_csv(folder / f"{m}.csv")
    ds.truth.context.to_csv(folder / "context.csv")
    return [str(folder / f"{m}.csv") for m in MODALITIES]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The cohort, the folder with its files, what the program prints, and the folder it fills."""
    folder, printed = tmp_path_factory.mktemp("tables"), io.StringIO()
    ds = synthetic_cohort(n=60, seed=3)
    argv = ["--tables", *write_cohort(ds, folder), "--context", str(folder / "context.csv"), *OVERRIDES]
    argv += ["--folds", "2", "--epochs", "3", "--seed", "5", "--output", str(folder / "made" / "here")]
    before = torch.get_rng_state()
    with contextlib.redirect_stdout(printed), warnings.catch_warnings():
        warnings.simplefilter("error")
        quickstart.main(argv)
    assert torch.equal(torch.get_rng_state(), before)
    return ds, folder, printed.getvalue(), folder / "made" / "here"


def test_it_says_what_was_read_and_chosen(done):
    ds, folder, printed, _ = done
    for m, frame in ds.frames.original.items():
        rows = int(ds.obs_mask[m].reshape(60, -1).any(-1).sum())
        assert f"{folder / m}.csv" in printed
        assert f"  {m}: {rows} rows, {frame.shape[1]} columns" in printed
    common = torch.stack([mask.reshape(60, -1).any(-1) for mask in ds.obs_mask.values()]).all(0)
    assert f"60 ids, {int(common.sum())} of them in every file" in printed
    assert "given, never modelled: age, site (Kyoto, Lima, Oslo)" in printed
    for line in ("12 normal", "8 laplace", "1 log_normal", "1 negative_binomial", "1 bernoulli"):
        assert line in printed
    assert "stage (I < II < III < IV)" in printed
    assert "gene_1, gene_2, gene_3 and 9 more" in printed


def test_patterns_are_those_of_the_data(done):
    ds, _, printed, _ = done
    seen = torch.stack([mask.reshape(60, -1).any(-1) for mask in ds.obs_mask.values()], -1)
    complete = int(seen.all(-1).sum())
    assert f"{complete:>8}{complete / 60:>8.0%}" in printed
    known = ds.frames.original["protein"].notna().to_numpy()
    share = 1 - known[known.any(1)].mean()
    assert f"{share:.1%}" in next(line for line in printed.splitlines() if "single cells missing" in line)


@pytest.mark.parametrize("m", MODALITIES)
def test_completed_tables_keep_what_came_in(done, m):
    ds, folder, printed, output = done
    came = pandas.read_csv(folder / f"{m}.csv", index_col=0)
    full, sd, lower, upper = (
        pandas.read_csv(output / f"imputed_{m}{part}.csv", index_col=0) for part in ("", "_sd", "_lower", "_upper")
    )
    assert str(output / f"imputed_{m}.csv") in printed
    assert sorted(full.index) == sorted(ds.frames.index)
    assert full.index.name == "patient"
    for frame in (full, sd, lower, upper):
        assert list(frame.columns) == list(came.columns)
        assert list(frame.index) == list(full.index)
    assert not full.isna().any(axis=None)
    for column in came:
        known = came[column].dropna()
        assert (full.loc[known.index, column] == known).all(), column
        assert (sd.loc[known.index, column].dropna() == 0).all(), column
        gaps = full.index.difference(known.index)
        if column == "histology":
            assert sd.loc[gaps, column].isna().all()
        elif came[column].dtype == float and column != "lesions":
            assert (sd.loc[gaps, column] > 0).all(), column
            assert (lower.loc[gaps, column] <= upper.loc[gaps, column]).all(), column


def test_cells_keep_their_kind(done):
    *_, output = done
    full = pandas.read_csv(output / "imputed_clinical.csv", index_col=0)
    assert full["lesions"].dtype == np.int64
    assert full["smoker"].dtype == bool
    assert set(full["stage"]) <= {"I", "II", "III", "IV"}
    assert (full["crp"] > 0).all()


def test_the_latents_are_written_by_id(done):
    ds, *_, output = done
    latent = pandas.read_csv(output / "latent.csv", index_col=0)
    assert sorted(latent.index) == sorted(ds.frames.index)
    sds = [c for c in latent if c.endswith("_sd")]
    assert 2 * len(sds) == latent.shape[1]
    assert (latent[sds] > 0).all(axis=None)


@pytest.mark.parametrize("name", ["missingness.png", "heldout.png", "latent.png"])
def test_a_picture_shows_something(done, name):
    from matplotlib.image import imread

    image = imread(done[3] / name)
    assert min(image.shape[:2]) > 300
    assert image[..., :3].std() > 0.05  # blank paper has 0
    assert str(done[3] / name) in done[2]


def test_held_out_numbers_are_those_of_other_means(done):
    """Protein from the other tables: the score of the column mean and of ridge regression, from the files alone."""
    from sklearn.linear_model import RidgeCV

    ds, folder, printed, output = done
    cells = pandas.read_csv(output / "heldout_cells.csv")
    own = cells[(cells["modality"] == "protein") & (cells["hidden"] == "modality")]
    ids = ds.frames.index
    came = {m: pandas.read_csv(folder / f"{m}.csv", index_col=0).reindex(ids) for m in MODALITIES}
    context = pandas.read_csv(folder / "context.csv", index_col=0).reindex(ids)
    clinical = came["clinical"].assign(crp=np.log(came["clinical"]["crp"]))
    numbers = pandas.concat([came["mrna"], clinical[["bmi", "systolic", "crp", "lesions"]], context[["age"]]], axis=1)
    bools = clinical["smoker"].map({True: 1.0, False: 0.0})
    levels = [pandas.get_dummies(c).astype(float).where(c.notna(), axis=0)
              for c in (clinical["stage"], clinical["histology"], context["site"])]  # fmt: skip
    errors: dict[str, list[float]] = {"mean": [], "ridge": [], "model": []}
    parts = hiding.parts(ds, 2, seed=5)
    for fold, held in own.groupby("fold"):
        rest = list(parts[fold].train.frames.index)
        assert len(rest) == 48
        assert not set(rest) & set(cells[cells["fold"] == fold]["row"])
        x = pandas.concat([(numbers - numbers.loc[rest].mean()) / numbers.loc[rest].std(ddof=0),
                           *(f - f.loc[rest].mean() for f in (bools, *levels))], axis=1).fillna(0.0)  # fmt: skip
        for column, said in held.groupby("column"):
            y = came["protein"][column]
            there = y.loc[rest].dropna()
            scale = there.std(ddof=0)
            fitted = RidgeCV(baselines.PENALTIES).fit(x.loc[there.index].to_numpy(), (there - there.mean()) / scale)
            truth = y.loc[said["row"]].to_numpy()
            assert (truth == said["truth"].to_numpy()).all()
            ridge = there.mean() + scale * fitted.predict(x.loc[said["row"]].to_numpy())
            for name, prediction in (("mean", there.mean()), ("ridge", ridge), ("model", said["model"])):
                errors[name] += [*((np.asarray(prediction) - truth) / scale)]
    assert len(errors["mean"]) == len(own) == int(came["protein"].loc[own["row"].unique()].notna().sum().sum())
    found = {name: float(np.sqrt(np.mean(np.square(e)))) for name, e in errors.items()}
    inside = float(((own["lower"] <= own["truth"]) & (own["truth"] <= own["upper"])).mean())
    line = next(line for line in printed.splitlines() if line.startswith("  protein ") and "RMSE" in line)
    printed_numbers = [float(x.replace(",", "")) for x in line.split()[2:]]
    assert printed_numbers[0] == len(own)
    # columns with the same gaps share a penalty in the program: another one of the grid next to the best
    assert found["ridge"] == pytest.approx(printed_numbers[4], rel=0.02)
    assert [found["model"], found["mean"], inside] == pytest.approx(
        [printed_numbers[1], printed_numbers[2], printed_numbers[5]],
        abs=6e-4,  # rounding
    )


def test_neighbors_are_those_of_scikit_learn():
    from sklearn.impute import KNNImputer

    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(40, 6)), rng.normal(size=(9, 6))
    train[rng.random(train.shape) < 0.3] = np.nan
    test[:, 2:4] = np.nan
    expected = KNNImputer(n_neighbors=5).fit(train).transform(test)[:, 2:4]
    assert baselines.neighbors(train, test, np.array([2, 3]), k=5) == pytest.approx(expected, abs=1e-12)
    test[0] = np.nan  # nothing in common with anyone
    assert (baselines.neighbors(train, test, np.array([2, 3]), k=5)[0] == 0).all()


def test_ridge_uses_the_rows_that_have_the_target():
    from sklearn.linear_model import RidgeCV

    rng = np.random.default_rng(1)
    x = rng.normal(size=(50, 4))
    y = x @ rng.normal(size=(4, 2)) + 0.1 * rng.normal(size=(50, 2))
    train, test = np.concatenate([x, y], 1), rng.normal(size=(7, 6))
    train[:20, 4] = np.nan
    found = baselines.ridge(train, test, np.arange(4), np.array([4, 5]))
    for j, rows in ((0, slice(20, None)), (1, slice(None))):
        expected = RidgeCV(baselines.PENALTIES).fit(x[rows], y[rows, j]).predict(test[:, :4])
        assert found[:, j] == pytest.approx(expected, abs=1e-10)


def test_encoded_cells_come_back():
    ds = synthetic_cohort(n=40, seed=0)
    encoding = Encoding(ds)
    features = encoding.features(ds)
    for (m, i), block in encoding.blocks.items():
        own = features[:, block.places]
        known = ~np.isnan(own).any(1)
        assert own[known].mean(0) == pytest.approx(np.zeros(own.shape[1]), abs=1e-12)
        if m:
            cells = ds.frames.cells(m)[:, i].numpy()
            assert (known == ~np.isnan(cells)).all()
            assert encoding.cells((m, i), own[known]) == pytest.approx(cells[known], rel=1e-12)


def test_hidden_cells_are_hidden_and_every_part_is_held_out_once():
    ds = synthetic_cohort(n=40, seed=1)
    tests = []
    for part in hiding.parts(ds, 5, seed=0):
        assert not set(part.train.frames.index) & set(part.test.frames.index)
        tests += list(part.test.frames.index)
        assert len(part.tasks) == 6  # three modalities, and cells of each
        for task in part.tasks:
            known = ~np.isnan(task.truth)
            if task.given is None:
                assert np.isnan(task.seen.frames.cells(task.modality).numpy()[known]).all()
            else:
                assert task.modality not in task.given
                others = torch.stack([task.seen.obs_mask[m].reshape(len(known), -1).any(-1) for m in task.given])
                assert others.any(0).all()
    assert sorted(tests) == sorted(ds.frames.index)


@pytest.mark.parametrize("value", [0.1, 0.0, 3.5e8, 7])
def test_a_column_of_one_value_is_not_compared(value):
    x = np.random.default_rng(0).normal(size=(40, 2))
    frames = {"a": pandas.DataFrame({"x": x[:, 0], "same": value}), "b": pandas.DataFrame({"y": x[:, 1]})}
    ds = MultimodalDataset.from_frames(frames)
    assert Encoding(ds).scale[1] == 1.0  # not the rounding error of a mean
    for part in hiding.parts(ds, 5, seed=0):
        for task in part.tasks:
            known = ~np.isnan(task.truth).all(0)
            assert known.tolist() == ([True, False] if task.modality == "a" else [True])
    alone = MultimodalDataset.from_frames({m: frame.assign(y=value)[["y"]] for m, frame in frames.items()})
    with pytest.raises(ValueError, match="no cell can be held out"):
        hiding.parts(alone, 5, seed=0)


def test_a_score_of_positive_numbers_is_about_logarithms():
    cells = pandas.DataFrame({"truth": [1.0, -2.0], "model": [np.e**2, 1.0], "log": [True, False], "scale": [4.0, 6.0]})
    assert report.standardized_error(cells, "model").tolist() == pytest.approx([0.5, 0.5])


def lines(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


ERRORS = {
    "missing file": (None, "there is no such file"),
    "empty": ([""], "no columns beside the ids"),
    "no columns": (["id", "p1", "p2"], "no columns beside the ids"),
    "semicolons": (["id;a", "1;2"], "separated by ';'"),
    "no rows": (["id,a"], "has a header, but no rows"),
    "repeated ids": (["id,a", "p1,1", "p1,2", "p2,3"], "1 ids are there more than once: p1."),
    "no id": (["id,a", "p1,1", ",2"], "1 rows have no id"),
    "repeated column": (["id,a,a", "p1,1,2"], "column 3 of the header: the name 'a' is there twice"),
    "nameless column": (["id,a,", "p1,1,2"], "column 3 of the header: it has no name"),
    "ragged": (["id,a", "p1,1", "p2,1,2"], "as many cells in each line"),
    "text": (["id,a", *(f"p{i},word {i}" for i in range(9))], "column 'a': text with 9 different values in 9 cells"),
    "numbers and text": (["id,a", "p1,1.5", "p2,2.5", "p3,?", "p4,?"], "an empty cell where a number is missing"),
    "dates": (["id,a", *(f"p{i},2020-01-{i + 10}" for i in range(9))], "Fix: dates as days since some start"),
    "percentages": (["id,a", *(f"p{i},{i}.5%" for i in range(9))], "Fix: percentages without the sign, or --drop"),
    "commas": (["id,a", *(f'p{i},"{i},50"' for i in range(9))], "Fix: numbers with a decimal point, without commas"),
    "several": (["id,a,b", *(f"p{i},x{i},y{i}" for i in range(9))], "--drop 'clinical.a' 'clinical.b'"),
    "infinite": (["id,a", "p1,1.5", "p2,inf"], "column 'a', row 'p2': inf is infinite"),
    "nothing to tell it from": (["id,a", *(f"p{i},{i}.5" for i in range(25))], "no cell can be held out"),
    "few": (["id,a", "p1,1.5", "p2,2.5"], "2 samples are too few"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_is_one_line_that_names_the_file(tmp_path, capsys, case):
    rows, message = ERRORS[case]
    path = tmp_path / "clinical.csv"
    if rows is not None:
        lines(path, *rows)
    with pytest.raises(SystemExit) as exit:
        command.main(["--tables", str(path)])
    said = capsys.readouterr().err
    assert exit.value.code == 2
    assert said.count("\n") == 1
    assert message in said
    assert case in ("few", "nothing to tell it from") or str(path) in said


def test_tables_without_a_common_id_are_refused(tmp_path, capsys):
    a = lines(tmp_path / "a.csv", "id,x", "p1,1.5", "p2,2.5")
    b = lines(tmp_path / "b.csv", "id,y", "q1,1.5", "q2,2.5")
    with pytest.raises(SystemExit, match="2"):
        quickstart.main([f"--tables={a}", "--tables", str(a), str(b)])
    assert f"{b} shares no id with a: its index has 'q1', 'q2', theirs 'p1', 'p2'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--likelihood", "a"], "expected MODALITY.COLUMN=LIKELIHOOD, got 'a'"),
        (["--likelihood", "a.y=normal"], "'y'"),
        (["--likelihood", "a.x=bad"], "unknown 'bad'; known are normal"),
        (["--likelihood", "a=normal", "a.x=normal"], "one for all of a"),
        (["--likelihood", "context.x=normal"], "covariates are given"),
        (["--drop", "a.x"], "no column is left"),
        (["--drop", "b.x"], "there is no table 'b'; there are a"),
        (["--drop", "x"], "expected MODALITY.COLUMN, got 'x'"),
        (["--seconds", "0"], "expected a positive number, got '0'"),
        (["--epochs", "1.5"], "expected a positive number, got '1.5'"),
        (["--folds", "6"], "invalid choice"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path, capsys, options, message):
    path = lines(tmp_path / "a.csv", "id,x", *(f"p{i},{i}.5" for i in range(25)))
    with pytest.raises(SystemExit, match="2"):
        command.main(["--tables", str(path), *options])
    assert message in capsys.readouterr().err


def test_one_table_of_classes_alone_and_a_dropped_column(tmp_path, capsys):
    rows = [f"{i},{'xyz'[i % 3] if i % 7 else ''},{'uv'[i % 2]}," for i in range(40)]
    path = lines(tmp_path / "a.csv", "id,c,d,nothing", *rows)
    command.main(["--tables", str(path), "--epochs", "1", "--output", str(tmp_path / "out")])
    said = capsys.readouterr()
    assert f"note: {path}: nothing is observed of column 'nothing'" in said.err
    assert "A whole modality hidden" not in said.out
    full = pandas.read_csv(tmp_path / "out" / "imputed_a.csv", index_col=0)
    assert full.index.tolist() == list(range(40))
    assert set(full["c"]) == {"x", "y", "z"}
    assert not (tmp_path / "out" / "heldout.png").exists()


def test_training_ends_in_time():
    from pyro_mmvae.quickstart.cohort.learning import _stop_after
    from pyro_mmvae.training.history import State

    state = State(torch.nn.Linear(1, 1), torch.optim.SGD([torch.zeros(1, requires_grad=True)]), 9, seconds=2.0)
    _stop_after(3.0)("epoch", state)
    assert not state.stop
    _stop_after(2.0)("epoch", state)
    assert state.stop


@pytest.mark.slow
@pytest.mark.skipif(not TCGA.is_dir(), reason="needs the tables of the breast cancer cohort")
def test_breast_cancer_patients_get_proteins(tmp_path):
    """Training and test patients in one file per table: 70 of 220 have no protein."""
    for m in ("mrna", "mirna", "protein"):
        found = [pandas.read_csv(path, index_col=0) for part in ("train", "test")
                 if (path := TCGA / f"{part}_{m}.csv.gz").exists()]  # fmt: skip
        pandas.concat(found, join="inner").to_csv(tmp_path / f"{m}.csv")
    argv = ["--tables", *(str(tmp_path / f"{m}.csv") for m in ("mrna", "mirna", "protein")), "--folds", "1"]
    command.main([*argv, "--output", str(tmp_path / "out")])
    scores = pandas.read_csv(tmp_path / "out" / "heldout_scores.csv").set_index(["hidden", "modality"])
    protein = scores.loc[("modality", "protein")]
    assert protein["model"] < protein["mean"]
    assert 0.8 < protein["coverage"] < 0.97
    full, sd = (pandas.read_csv(tmp_path / "out" / f"imputed_protein{part}.csv", index_col=0) for part in ("", "_sd"))
    assert full.shape == (220, 142)
    assert int((sd > 0).all(axis=1).sum()) == 70
