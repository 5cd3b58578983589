"""The benchmark's gaps: zero for the exact posterior, the divergence for a wrong one, and the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from benchmarks.auto_guides import gaps, report
from benchmarks.auto_guides.references import log_evidence
from benchmarks.auto_guides.runs import STORIES, Run, objective_of, perform
from tests.oracles.statistics import within
from tests.stories.examples.cases import ALL, hand_guide, made

pytestmark = pytest.mark.usefixtures("float64")


def exact_posterior(story: Any, data: Any, obs_mask: Any) -> Any:
    """p(z | x_O) of the factor analysis."""
    cells = [obs_mask[m].reshape(len(obs_mask[m]), -1).expand_as(data[m]) for m in story.modalities]
    mask = torch.cat(cells, -1)
    x = torch.where(mask, torch.cat([data[m] for m in story.modalities], -1) - story.bias, 0.0)
    scaled = story.weights / story.noise.square().unsqueeze(-1)
    precision = torch.eye(4) + torch.einsum("bf,fd,fe->bde", mask.double(), scaled, story.weights)
    loc = torch.linalg.solve(precision, (x @ scaled).unsqueeze(-1)).squeeze(-1)
    return dist.MultivariateNormal(loc, precision_matrix=precision)


def guide_at(story: Any, shift: float) -> Any:
    def guide(data: Any, obs_mask: Any) -> None:
        q = exact_posterior(story, data, obs_mask)
        with pyro.plate("data", len(q.loc), dim=-1):
            pyro.sample("z", dist.MultivariateNormal(q.loc + shift, scale_tril=q.scale_tril))

    return guide


def test_the_exact_guide_has_no_gap() -> None:
    story = made("FactorAnalysis")
    ds = story.simulate(50)
    log_w = gaps.row_weights(story.observed(), guide_at(story, 0.0), ds, 3)
    found = gaps.measure(log_evidence(story, ds.data, ds.obs_mask), log_w, rows=50, particles=3)
    assert abs(found["gap"]) < 1e-10 and abs(found["IWAE gap"]) < 1e-10


def test_the_gap_of_a_wrong_guide_is_its_divergence() -> None:
    """A shifted normal: KL(q || p) = 1/2 d' P d."""
    story = made("FactorAnalysis")
    ds = story.simulate(20)
    precision = exact_posterior(story, ds.data, ds.obs_mask).precision_matrix
    exact = 0.5 * 0.3**2 * precision.sum((-1, -2))
    log_w = gaps.row_weights(story.observed(), guide_at(story, 0.3), ds, 100)
    log_p = log_evidence(story, ds.data, ds.obs_mask)
    per_row = log_p - log_w
    within(per_row.mean(0), per_row.std(0) / 100**0.5, exact, sigmas=4.5)
    found = gaps.measure(log_p, log_w, rows=20, patterns=gaps.patterns_of(ds), particles=100)
    assert abs(found["gap"] - per_row.mean()) < 1e-12 and 0 < found["IWAE gap"] < found["gap"]
    total = sum(p["gap"] * p["rows"] for p in found["patterns"].values())
    assert abs(total / 20 - found["gap"]) < 1e-12


def test_patterns() -> None:
    ds = made("GammaPoisson").simulate(40)
    found = gaps.patterns_of(ds)
    assert set(found) == {"visits", "calls", "visits + calls"}
    assert torch.stack(list(found.values())).sum(0).eq(1).all()


def test_weights_of_a_whole_data_set() -> None:
    """With the prior as guide both ways of weighing Hospitals give the same numbers at the same draws."""
    story = made("Hospitals")
    ds = story.simulate(20)

    def prior(data: Any, obs_mask: Any) -> None:
        mean = pyro.sample("mean", dist.Normal(torch.tensor(0.0), 1.0))
        pyro.sample("effects", dist.Normal(mean.expand(5), story.between).to_event(1))
        with pyro.plate("data", 20, dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    pyro.set_rng_seed(1)
    guided = gaps.dataset_weights(story, prior, ds, 4)
    pyro.set_rng_seed(1)
    torch.testing.assert_close(guided, gaps.prior_weights(story, ds, 4), rtol=1e-12, atol=1e-9)


def test_a_data_set_with_globals_is_bounded() -> None:
    story = made("Hospitals")
    ds = story.simulate(20)
    log_w = gaps.dataset_weights(story, hand_guide("Hospitals"), ds, 50)
    whole = log_evidence(story, ds.data, ds.obs_mask).sum().unsqueeze(0)
    found = gaps.measure(whole, log_w, rows=20, particles=10)
    assert found["gap"] > 0 and found["patterns"] == {}
    assert abs(found["gap"] - float((whole - log_w).mean()) / 20) < 1e-12


@pytest.mark.parametrize("name", ALL)
def test_objectives(name: str) -> None:
    story = made(name)
    found = objective_of(story.observed(), story.simulate(5))
    assert type(found).__name__ == ("TraceEnum_ELBO" if name == "DiscreteMixture" else "ELBO")


def result(story: str, gap: float) -> dict[str, Any]:
    patterns = {"a": {"gap": 0.3, "error": 0.1, "rows": 3}, "b": {"gap": 0.2, "error": 0.01, "rows": 30}}
    numbers = {"gap": gap, "error": 0.01, "IWAE gap": 0.001, "IWAE error": 0.001, "prior gap": 5.0, "log p": -7.0}
    return {"run": Run(story).__dict__, **numbers, "steps": 10, "patterns": patterns}


def test_page(tmp_path: Path) -> None:
    for story, gap in (("ZINB", 0.2), ("FactorAnalysis", 0.02)):
        Run(story).file(tmp_path).write_text(json.dumps(result(story, gap)))
    assert Run("ZINB").kept(tmp_path) is not None and Run("ZINB", seconds=1.0).kept(tmp_path) is None
    found = report.read(tmp_path)
    assert list(found) == ["FactorAnalysis", "ZINB"]  # in the order of the table
    page = report.page(found)
    assert "1 of 2 stories meet it" in page and "0.200 ± 0.010 (missed)" in page and "0.020 ± 0.010 |" in page
    assert "0.200 ± 0.010 (b, 30 rows)" in page  # too few rows of the other
    with pytest.raises(ValueError, match="no results"):
        report.page({})


@pytest.mark.param_store
@pytest.mark.parametrize("name", ["GammaPoisson", "DiscreteMixture", "Hospitals"])
def test_a_run(name: str, tmp_path: Path) -> None:
    """From the story to its line of the table: a guide by itself, with globals, with a class to be summed out."""
    torch.set_default_dtype(torch.float32)
    run = Run(name, seconds=0.3, train=300, held_out=20, draws=4)
    said = perform(run, tmp_path)
    torch.set_default_dtype(torch.float64)
    found = run.kept(tmp_path)
    assert found is not None and said.startswith(name) and found["steps"] > 0
    assert all(abs(found[key]) < 1e4 for key in ("gap", "error", "IWAE gap", "prior gap", "log p"))
    assert name in report.table(report.read(tmp_path))


def test_stories_are_all_there() -> None:
    assert set(STORIES) == set(ALL)


def test_iwae_is_the_log_of_the_mean_weight() -> None:
    log_w: Tensor = torch.randn(20, 3)
    found = gaps.measure(torch.zeros(3), log_w, rows=3, particles=20)
    assert abs(found["IWAE gap"] + float(log_w.exp().mean(0).log().mean())) < 1e-12
