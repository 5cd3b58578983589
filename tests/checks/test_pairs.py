"""Healthy pairs of every kind pass, in little time, and are afterwards what they were.

Test layer.
"""

from __future__ import annotations

import copy
import random
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_mmvae as mm
from pyro_mmvae.checks.state import networks_of
from tests.checks.mistakes import DIM, Guide, InPlace, Model, Seeds, batch
from tests.checks.pairs import (
    HEALTHY,
    Censored,
    Made,
    bounded_by_another_latent,
    enumerated,
    global_site,
    hidden_entries_drawn,
    observed_by_hand,
    story_with_covariate,
)
from tests.checks.planted import planted

EACH = pytest.mark.parametrize("make", HEALTHY.values(), ids=HEALTHY.keys())


@EACH
def test_healthy_pairs_pass(make: Callable[[], Made]) -> None:
    start = time.process_time()
    report = mm.check(*make())
    assert report, str(report)
    assert not [f for f in report.findings if f.message.startswith("could not")], str(report)
    assert time.process_time() - start < 10  # about one second; the margin is for a busy machine


@EACH
def test_what_a_healthy_pair_is_told_is_short(make: Callable[[], Made]) -> None:
    allowed = {"training and evaluation agree"}
    assert {f.law for f in mm.check(*make()).notes} <= allowed


def state_of(model: Any, guide: Any) -> dict[str, Any]:
    out: dict[str, Any] = {"store": dict(pyro.get_param_store()._params), "torch": torch.get_rng_state()}
    out["numpy"], out["random"] = np.random.get_state()[1].copy(), random.getstate()
    for which, program in (("model", model), ("guide", guide)):
        for root, network in networks_of(program).items():
            out |= {f"{which} {root} {k}": v.clone() for k, v in network.state_dict().items()}
            out |= {f"{which} {root} {k} itself": id(p) for k, p in network.named_parameters()}
            out |= {f"{which} {root} {k} grad": p.grad for k, p in network.named_parameters()}
            out |= {f"{which} {root} {k} mode": m.training for k, m in network.named_modules()}
    return out


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert list(before) == list(after)
    for name, value in before.items():
        other = after[name]
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other), name
        elif isinstance(value, np.ndarray):
            assert (value == other).all(), name
        else:
            assert value is other or value == other, name


@pytest.mark.parametrize(
    "make",
    [*HEALTHY.values(), *(lambda c=c: (*c.sick(), *batch()) for c in planted())],  # type: ignore[misc]
    ids=[*HEALTHY, *(c.name for c in planted())],
)
def test_nothing_is_changed(make: Callable[[], Made], capsys: pytest.CaptureFixture[str]) -> None:
    model, guide, data, mask = make()
    for program in (model, guide):
        if isinstance(program, nn.Module):
            program.eval()
    before = state_of(model, guide)
    inputs = copy.deepcopy((data, mask))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mm.check(model, guide, data, mask)
    assert_same(before, state_of(model, guide))
    for kept, now in zip(inputs, (data, mask), strict=True):
        assert (kept is None) == (now is None)
        for name, x in (kept or {}).items():
            torch.testing.assert_close(now[name], x, rtol=0, atol=0, equal_nan=True)
    assert capsys.readouterr().out == ""
    assert not pyro.get_param_store().keys()


@pytest.mark.param_store
def test_a_trained_pair_stays_trained() -> None:
    """Parameters, gradients and the store of a pair in the middle of training."""
    model, guide, data, mask = observed_by_hand()
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), pyro.infer.Trace_ELBO())
    svi.step(data, mask)
    store = pyro.get_param_store()
    before = {k: (p, p.detach().clone()) for k, p in store._params.items()}
    report = mm.check(model, guide, data, mask)
    assert report, str(report)
    assert list(store._params) == list(before)
    for name, (p, value) in before.items():
        assert store._params[name] is p
        assert torch.equal(p, value)
    svi.step(data, mask)
    assert all(not torch.equal(p, before[name][1]) for name, p in store._params.items())


@pytest.mark.param_store
def test_an_autoguide_that_never_ran_is_not_set_up() -> None:
    model, guide, data, mask = global_site()
    mm.check(model, guide, data, mask)
    assert guide.globals.prototype_trace is None
    guide(data, mask)
    assert guide.globals.prototype_trace is not None


def test_running_statistics_stay() -> None:
    case = next(c for c in planted() if c.name == "BatchNorm")
    model, guide = case.sick()
    mm.check(model, guide, *batch())
    statistics = {name: b for name, b in guide.named_buffers() if "num_batches" in name}
    assert statistics
    assert all(int(b) == 0 for b in statistics.values())


def test_the_same_seed_says_the_same() -> None:
    model, guide, data, mask = story_with_covariate()
    assert str(mm.check(model, guide, data, mask)) == str(mm.check(model, guide, data, mask))


def test_gradients_that_are_there_stay() -> None:
    model, guide, data, mask = enumerated()
    for p in model.parameters():
        p.grad = torch.full_like(p, 3.0)
    mm.check(model, guide, data, mask)
    assert all((p.grad == 3.0).all() for p in model.parameters() if p.grad is not None)


def test_an_objective_is_looked_at_too() -> None:
    model, guide, data, mask = story_with_covariate()
    assert mm.check(model, guide, data, mask, objective=mm.ELBO())
    assert mm.check(model, guide, data, mask, objective=pyro.infer.Trace_ELBO())

    class Costly(mm.ELBO):
        def loss_of(self, programs: Any, table: Any) -> torch.Tensor:
            return super().loss_of(programs, table) + 1.0

    found = mm.check(model, guide, data, mask, objective=Costly())
    assert found["nothing observed is free"].status == "broken"
    assert found["nothing observed is free"].program == "objective"


def test_a_dataset_is_taken_with_its_masks() -> None:
    data, mask = batch()
    assert mm.check(Model(), Guide(), mm.MultimodalDataset(data, mask))
    with pytest.raises(TypeError, match="a dataset has its own"):
        mm.check(Model(), Guide(), mm.MultimodalDataset(data, mask), mask)
    with pytest.raises(TypeError, match="expected a mapping"):
        mm.check(Model(), Guide(), data["x"])


def test_float64_passes(float64: None) -> None:
    data, mask = batch()
    assert mm.check(Model(), Guide(), {m: x.double() for m, x in data.items()}, mask)


def test_one_row_is_enough_to_say_most() -> None:
    report = mm.check(Model(), Guide(), {m: torch.ones_like(x[:1]) for m, x in batch()[0].items()}, None)
    assert report, str(report)
    assert report["rows are independent"].status == "not applicable"


def test_without_validation_nan_is_named_by_site() -> None:
    case = next(c for c in planted() if c.name == "no answer to nothing")
    with pyro.validation_enabled(False):
        torch.distributions.Distribution.set_default_validate_args(False)
        try:
            found = mm.check(*case.sick(), *batch())[case.law]
        finally:
            torch.distributions.Distribution.set_default_validate_args(True)
    assert (found.status, found.program, found.site) == ("broken", "guide", "z")


def test_a_program_that_does_not_run_is_one_finding() -> None:
    def guide(data: dict[str, torch.Tensor]) -> None: ...

    report = mm.check(Model(), guide, *batch())
    assert [f.law for f in report.broken] == ["programs run"]
    assert "(data, obs_mask)" in report.broken[0].fix
    assert report["sites match"].status == "not applicable"


def test_the_table_says_everything() -> None:
    report = mm.check(Model(), InPlace(), *batch())
    text = str(report)
    assert len(text.splitlines()) == len(report.findings)
    assert "BROKEN  state is left as found" in text
    assert "modality 'x'" in text
    assert "Fix: work on copies" in text
    html = report._repr_html_()
    assert html.count("<tr>") == len(report.findings) + 1
    with pytest.raises(KeyError, match="no law"):
        report["nonsense"]
    assert len({str(f) for f in mm.check(Model(), Seeds(), *batch()).broken}) == 1


class Noisy(Censored):
    """A latent that is no site."""

    def forward(self) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(DIM), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(self.net(z + torch.randn_like(z)), 0.5).to_event(1))
        pyro.sample("seen", dist.Bernoulli(logits=self.rate * self.net(z)).to_event(1))


def test_draws_that_are_no_sites_are_named() -> None:
    _, _, data, mask = hidden_entries_drawn()
    model = mm.observe(Noisy(), ("x", "seen"))
    guide = mm.guides.Product(model, {m: mm.nn.MLPEncoder(3, DIM) for m in ("x", "seen")})
    report = mm.check(model, guide, data, mask)
    assert [(f.law, f.program, f.site) for f in report.broken] == [("training and evaluation agree", "model", "x")]
    assert "torch.randn" in report.broken[0].message
    assert report["rows are independent"].status == report["particles vectorize"].status == "not applicable"


def test_hidden_entries_that_a_native_model_draws_are_a_note() -> None:
    story, guide, data, mask = hidden_entries_drawn()

    class Native(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.story = story.story

        def forward(self, data: Any, obs_mask: Any = None) -> None:
            with pyro.plate("data", len(data["x"])), mm.handlers.observe(data, obs_mask, ("x", "seen"), draw=("x",)):
                self.story()

    report = mm.check(Native(), guide, data, mask)
    assert report, str(report)
    assert "handlers.observe(draw=)" in report["training and evaluation agree"].fix


def test_what_some_masks_make_a_program_do_does_not_stop_the_check() -> None:
    class Stubborn(Guide):
        def forward(self, data: Any, obs_mask: Any) -> None:
            if not all(bool(x.all()) for x in obs_mask.values()):
                raise ValueError("something is missing. Fix: complete rows.")
            super().forward(data, obs_mask)

    report = mm.check(Model(), Stubborn(), {m: torch.ones_like(x) for m, x in batch()[0].items()})
    assert [f.program for f in report.broken] == ["guide"]
    assert "something is missing" in report.broken[0].message
    assert report["parameters are registered"].status == "not applicable"


def test_an_error_with_a_way_out_keeps_it() -> None:
    class Strict(Guide):
        def forward(self, data: Any, obs_mask: Any) -> None:
            raise ValueError("rows are unsorted. Fix: sort them.")

    found = mm.check(Model(), Strict(), *batch())["programs run"]
    assert found.fix == "sort them."
    assert str(found).count("Fix:") == 1


def test_a_support_may_depend_on_another_latent() -> None:
    report = mm.check(*bounded_by_another_latent())
    assert report["supports match"].status == "holds", str(report)
    assert report, str(report)
