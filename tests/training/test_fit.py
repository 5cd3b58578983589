"""The loop: what is trained, the order of events, validation, stopping, reproducibility."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

import pyro_mmvae as mm
from pyro_mmvae.datasets import MultimodalDataset
from pyro_mmvae.training import State, fit
from tests.training import cases

QUIET = {"progress": False, "seed": 0}


def test_loss_falls_and_every_parameter_moves():
    vae = cases.vae()
    before = cases.weights(vae)
    history = fit(vae, cases.data(), epochs=30, batch_size=16, lr=0.02, **QUIET)
    assert history["loss"][-1] < history["loss"][0] - 1
    assert set(cases.differing(before, cases.weights(vae))) == set(before)
    assert history["epoch"] == list(range(1, 31))
    assert set(history["lr"]) == {0.02}
    assert history["seconds"] == sorted(history["seconds"])
    assert history.best_epoch is None and "val_loss" not in history
    assert json.loads(json.dumps(history)) == history
    assert all(p.grad is None for p in vae.parameters())


def test_loss_of_the_history_is_per_row_whatever_the_batches():
    """At learning rate 0, and with a loss without noise, all ways to cut 7 rows give the mean over the rows."""
    losses = []
    for size in (7, 3, 1):
        vae = cases.vae(seed=3)
        for decoder in vae.model.modules():
            if isinstance(decoder, mm.nn.MLPDecoder):
                for p in decoder.net.parameters():
                    nn.init.zeros_(p)  # the likelihood does not depend on the draw
        still = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.0)}
        losses.append(fit(vae, cases.data(7), epochs=1, batch_size=size, **still, **QUIET)["loss"][0])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) == pytest.approx(losses[2], rel=1e-5)


def test_incomplete_features_and_their_content():
    ds = cases.data(hidden=0.0).hide(0.4, seed=2, level="feature")
    assert ds.obs_mask["b"].dim() == 2
    junk = MultimodalDataset(
        {m: torch.where(ds.obs_mask[m], x, 1e30) for m, x in ds.data.items()}, obs_mask=ds.obs_mask
    )
    one, other = cases.vae(), cases.vae()
    assert fit(one, ds, epochs=2, **QUIET)["loss"] == fit(other, junk, epochs=2, **QUIET)["loss"]
    assert cases.differing(cases.weights(one), cases.weights(other)) == []


def test_equal_seeds_are_equal_runs_and_others_are_not():
    def run(seed):
        vae = cases.vae(dropout=0.3)
        history = fit(vae, cases.data(), epochs=2, batch_size=16, validation=0.2, seed=seed, progress=False)
        return vae, history

    (one, h1), (same, h2), (other, h3) = run(7), run(7), run(8)
    assert h1["loss"] == h2["loss"] != h3["loss"]
    assert h1["val_loss"] == h2["val_loss"]
    assert cases.differing(cases.weights(one), cases.weights(same)) == []
    assert cases.differing(cases.weights(one), cases.weights(other)) != []


PROGRAM = """
from pyro_mmvae.training import fit
from tests.training import cases
history = fit(cases.vae(dropout=0.3), cases.data(), epochs=2, batch_size=16, validation=0.2, seed=7, progress=False)
print(*(x.hex() for x in history["loss"] + history["val_loss"]))
"""


def test_equal_seeds_are_equal_runs_in_another_process():
    code = "import torch; torch.set_num_threads(1); torch.rand(3)" + PROGRAM
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    here = fit(cases.vae(dropout=0.3), cases.data(), epochs=2, batch_size=16, validation=0.2, seed=7, progress=False)
    assert there == [x.hex() for x in here["loss"] + here["val_loss"]]


def test_random_state_is_left_as_found_with_a_seed_and_used_without():
    before = torch.get_rng_state()
    fit(cases.vae(), cases.data(), epochs=1, validation=0.2, seed=0, progress=False)
    assert torch.equal(before, torch.get_rng_state())
    first = fit(cases.vae(), cases.data(), epochs=1, validation=0.2, progress=False)
    assert not torch.equal(before, torch.get_rng_state())
    torch.set_rng_state(before)
    assert fit(cases.vae(), cases.data(), epochs=1, validation=0.2, progress=False)["loss"] == first["loss"]


def test_modes_are_left_as_found():
    vae = cases.vae()
    vae.eval()
    next(iter(vae.guide.modules())).train()
    modes = [m.training for m in vae.modules()]
    seen = []
    fit(
        vae,
        cases.data(),
        epochs=1,
        validation=0.2,
        callbacks=[lambda event, state: seen.append((event, all(m.training for m in state.vae.modules())))],
        **QUIET,
    )
    assert [m.training for m in vae.modules()] == modes
    assert all(training for event, training in seen if event in ("step", "validation", "epoch"))


def test_order_of_events():
    seen = []

    def record(event, state):
        assert isinstance(state, State)
        seen.append((event, state.epoch, state.step))

    fit(cases.vae(), cases.data(), epochs=2, batch_size=16, validation=0.2, callbacks=[record], **QUIET)
    assert seen == [
        ("train_start", 0, 0), ("stage", 0, 0),
        ("step", 1, 1), ("step", 1, 2), ("validation", 1, 2), ("epoch", 1, 2),
        ("step", 2, 3), ("step", 2, 4), ("validation", 2, 4), ("epoch", 2, 4),
        ("end", 2, 4),
    ]  # fmt: skip


def test_state_shows_rates_losses_and_the_history():
    rows = []

    def record(event, state):
        if event == "epoch":
            rows.append((state.lr, state.loss, state.val_loss, len(state.history["loss"]), state.seconds))

    history = fit(cases.vae(), cases.data(), epochs=2, lr=0.01, validation=0.2, callbacks=[record], **QUIET)
    assert [r[:4] for r in rows] == [(0.01, history["loss"][i], history["val_loss"][i], i + 1) for i in range(2)]
    assert 0 < rows[0][4] < rows[1][4]


@pytest.mark.parametrize(("event", "steps", "epochs"), [("step", 1, 1), ("epoch", 3, 1), ("train_start", 0, 0)])
def test_a_callback_stops_the_run(event, steps, epochs):
    ends = []

    def stop(e, state):
        state.stop |= e == event
        if e == "end":
            ends.append(state.step)

    history = fit(cases.vae(), cases.data(), epochs=4, batch_size=16, callbacks=[stop], **QUIET)
    assert ends == [steps]
    assert len(history.get("epoch", [])) == epochs


def test_schedule_is_stepped_once_per_epoch():
    history = fit(
        cases.vae(),
        cases.data(),
        epochs=3,
        batch_size=16,
        optimizer=lambda p: torch.optim.AdamW(p, lr=0.4),
        scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 1, gamma=0.5),
        **QUIET,
    )
    assert history["lr"] == pytest.approx([0.4, 0.2, 0.1])


def test_double_precision_models_take_single_precision_data():
    vae = cases.vae().double()
    history = fit(vae, cases.data(), epochs=1, validation=0.2, **QUIET)
    assert math.isfinite(history["val_loss"][0])
    assert {p.dtype for p in vae.parameters()} == {torch.float64}


@pytest.mark.param_store
def test_stock_elbo_as_objective():
    vae = cases.vae()
    vae = mm.MultimodalVAE(vae.model, vae.guide, Trace_ELBO())
    history = fit(vae, cases.data(), epochs=20, lr=0.02, validation=0.2, **QUIET)
    assert history["loss"][-1] < history["loss"][0]
    assert history.best_epoch is not None


def test_no_epochs():
    vae = cases.vae()
    before = cases.weights(vae)
    assert fit(vae, cases.data(), epochs=0, **QUIET) == {}
    assert cases.differing(before, cases.weights(vae)) == []


def test_progress_bar_shows_losses(capsys):
    fit(cases.vae(), cases.data(), epochs=2, batch_size=16, validation=0.2, seed=0)
    shown = capsys.readouterr().err
    assert "epoch 2/2" in shown and "val_loss=" in shown and "4/4" in shown
    fit(cases.vae(), cases.data(), epochs=1, **QUIET)
    captured = capsys.readouterr()
    assert captured.err == captured.out == ""
