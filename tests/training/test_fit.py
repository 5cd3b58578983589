"""The loop: what is trained, the order of events, validation, stopping, reproducibility."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
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


def test_one_step_equals_the_loop_written_by_hand():
    ds = cases.data(6)
    vae, twin = cases.vae(), cases.vae()
    fit(vae, ds, epochs=1, batch_size=6, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), **QUIET)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        batch = ds[order]
        (twin.objective.differentiable_loss(twin.model, twin.guide, batch.data, batch.obs_mask) / 6).backward()
    optimizer.step()
    for name, p in twin.named_parameters():
        torch.testing.assert_close(dict(vae.named_parameters())[name], p, rtol=1e-6, atol=1e-7)


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


def test_a_model_of_known_size_has_the_same_loss_per_row():
    class Sized(nn.Module):
        def __init__(self, size):
            super().__init__()
            self.model = mm.observe(self.story, ("x",), size=size, modules={})
            self.guide = mm.guides.Product(self.model, {"x": mm.nn.MLPEncoder(1, 1, hidden=())})
            self.objective = mm.ELBO()
            for p in self.guide.parameters():
                nn.init.zeros_(p)

        @staticmethod
        def story():
            pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(torch.zeros(1), 1.0).to_event(1))

    ds = MultimodalDataset({"x": torch.randn(9, 1)})
    still = {"epochs": 1, "batch_size": 3, "validation": ds, "optimizer": lambda p: torch.optim.SGD(p, lr=0.0)}
    one, other = (fit(Sized(size), ds, **still, **QUIET) for size in (None, 9))
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
    assert one["val_loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert other["val_loss"] == pytest.approx(one["val_loss"], rel=1e-5)


def test_incomplete_features_and_their_content():
    ds = cases.data(hidden=0.0).hide(0.4, seed=2, level="feature")
    assert ds.obs_mask["b"].dim() == 2
    junk = MultimodalDataset(
        {m: torch.where(ds.obs_mask[m], x, 1e30) for m, x in ds.data.items()}, obs_mask=ds.obs_mask
    )
    one, other = cases.vae(), cases.vae()
    assert fit(one, ds, epochs=2, **QUIET)["loss"] == fit(other, junk, epochs=2, **QUIET)["loss"]
    assert cases.differing(cases.weights(one), cases.weights(other)) == []


def test_rows_and_batches_with_nothing_observed():
    x = torch.randn(4, 2)
    ds = MultimodalDataset({"a": x, "b": torch.randn(4, 3)}, {m: torch.tensor([True] + 3 * [False]) for m in "ab"})
    history = fit(cases.vae(), ds, epochs=2, batch_size=1, clip_norm=1.0, **QUIET)
    assert all(math.isfinite(loss) for loss in history["loss"])


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


def test_validation_runs_in_evaluation_mode_without_gradient():
    vae, seen = cases.vae(), []
    vae.guide.register_forward_pre_hook(lambda module, args: seen.append((module.training, torch.is_grad_enabled())))
    fit(vae, cases.data(), epochs=1, validation=0.25, **QUIET)
    assert set(seen) == {(True, True), (False, False)}


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


def test_clock_counts_training_steps_only():
    vae = cases.vae()
    fit(vae, cases.data(), epochs=3, batch_size=16, validation=0.2, **QUIET)  # 32 rows: 2 steps per epoch
    assert vae.objective.step == 6
    fit(vae, cases.data(), epochs=1, batch_size=16, **QUIET)
    assert vae.objective.step == 9


class Scripted(mm.ELBO):
    """An ELBO whose validation losses are given."""

    def __init__(self, losses, annealing_steps=0):
        super().__init__()
        self.losses, self.annealed_after = list(losses), annealing_steps

    @property
    def annealing_steps(self):
        return self.annealed_after

    def loss(self, model, guide, data, obs_mask, *args):
        return self.losses.pop(0) * data.size


def scripted(losses, annealing_steps=0, **options):
    """Weights after every epoch, those at the end, the history; one step per epoch."""
    vae, after = cases.vae(), []
    vae.objective = Scripted(losses, annealing_steps)
    ds = cases.data(8)

    def record(event, state):
        if event == "epoch":
            after.append(cases.weights(vae))

    history = fit(vae, ds, epochs=len(losses), batch_size=8, validation=ds, callbacks=[record], **options, **QUIET)
    assert vae.objective.step == len(history["epoch"])
    return after, cases.weights(vae), history


def test_best_weights_are_restored():
    after, end, history = scripted([3.0, 1.0, 2.0, 1.5])
    assert history.best_epoch == 2
    assert history["val_loss"] == [3.0, 1.0, 2.0, 1.5]
    assert cases.differing(end, after[1]) == []
    assert cases.differing(end, after[3]) != []


def test_epochs_before_the_end_of_annealing_do_not_count():
    after, end, history = scripted([0.1, 0.2, 3.0, 2.0, 2.5], annealing_steps=2)
    assert history.best_epoch == 4
    assert cases.differing(end, after[3]) == []


def test_last_weights_stay_where_annealing_never_ends():
    after, end, history = scripted([0.1, 0.2], annealing_steps=10)
    assert history.best_epoch is None
    assert cases.differing(end, after[1]) == []


def test_early_stopping_counts_epochs_since_the_best():
    after, end, history = scripted([3.0, 1.0, 2.0, 1.5, 0.5, 0.4], patience=2)
    assert history["epoch"] == [1, 2, 3, 4]
    assert cases.differing(end, after[1]) == []


def test_early_stopping_waits_for_annealing():
    _, _, history = scripted([0.1, 0.2, 3.0, 4.0, 5.0, 6.0], annealing_steps=2, patience=2)
    assert history["epoch"] == [1, 2, 3, 4, 5]


def test_validation_noise_is_the_same_in_every_epoch():
    still = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.0)}
    history = fit(cases.vae(dropout=0.5), cases.data(), epochs=3, batch_size=16, validation=0.5, **still, **QUIET)
    assert len(set(history["val_loss"])) == 1
    assert len(set(history["loss"])) == 3


def test_validation_does_not_change_the_training():
    one, other = cases.vae(dropout=0.3), cases.vae(dropout=0.3)
    with_it = fit(one, cases.data(), epochs=2, validation=cases.data(10), **QUIET)
    assert with_it["loss"] == fit(other, cases.data(), epochs=2, **QUIET)["loss"]


def test_validation_loss_has_the_units_of_the_loss():
    still = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.0)}
    vae, ds = cases.vae(), cases.data(2000, hidden=0.0)
    history = fit(vae, ds, epochs=1, batch_size=1000, validation=ds, **still, **QUIET)
    with torch.no_grad():
        rows = vae.objective.per_sample(vae.model, vae.guide, ds.data, ds.obs_mask)
    error = 4 * float(rows.std()) * (2 / 2000) ** 0.5  # both are means over the same rows; only the noise differs
    assert history["val_loss"][0] == pytest.approx(-float(rows.mean()), abs=error)
    assert history["val_loss"][0] == pytest.approx(history["loss"][0], abs=error)


def test_clipping_bounds_the_step():
    ds = cases.data(16)

    def moved(clip_norm):
        vae = cases.vae()
        before = cases.weights(vae)
        sgd = {"optimizer": lambda p: torch.optim.SGD(p, lr=1.0)}
        fit(vae, ds, epochs=1, batch_size=16, clip_norm=clip_norm, **sgd, **QUIET)
        after = cases.weights(vae)
        return torch.cat([(after[k] - before[k]).flatten() for k in before])

    free, clipped, loose = moved(None), moved(0.01), moved(1e6)
    assert free.norm() > 0.1
    torch.testing.assert_close(clipped.norm(), torch.tensor(0.01), rtol=1e-3, atol=0.0)
    torch.testing.assert_close(clipped / clipped.norm(), free / free.norm(), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(loose, free)


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


@pytest.mark.parametrize("held_out", [True, False])
def test_plateau_schedule_gets_the_validation_loss_or_the_loss(held_out):
    given = []

    class Plateau(torch.optim.lr_scheduler.ReduceLROnPlateau):
        def step(self, metrics, epoch=None):
            given.append(metrics)
            super().step(metrics)

    validation = 0.2 if held_out else None
    history = fit(cases.vae(), cases.data(), epochs=2, scheduler=Plateau, validation=validation, **QUIET)
    assert given == history["val_loss" if held_out else "loss"]


def test_default_optimizer_is_fused_adam_at_the_given_rate():
    seen = []
    fit(cases.vae(), cases.data(), epochs=1, lr=0.03, callbacks=[lambda e, s: seen.append(s.optimizer)], **QUIET)
    assert isinstance(seen[0], torch.optim.Adam)
    assert seen[0].defaults["fused"] is True
    assert seen[0].defaults["lr"] == 0.03


def test_frozen_parameters_stay():
    vae = cases.vae()
    frozen = next(iter(vae.model.parameters()))
    frozen.requires_grad_(False)
    before = frozen.clone()
    fit(vae, cases.data(), epochs=1, **QUIET)
    assert torch.equal(frozen, before)


def test_double_precision_models_take_single_precision_data():
    vae = cases.vae().double()
    history = fit(vae, cases.data(), epochs=1, validation=0.2, **QUIET)
    assert math.isfinite(history["val_loss"][0])
    assert {p.dtype for p in vae.parameters()} == {torch.float64}


class WithParam(nn.Module):
    """A guide whose parameter only Pyro's store knows."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(1, 1)
        self.model = mm.observe(self.story, ("x",), modules={})
        self.objective = mm.ELBO()

    @staticmethod
    def story():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0))

    @staticmethod
    def guide(data=None, obs_mask=None, n=None):
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(data["x"])):
            pyro.sample("z", dist.Normal(loc, 1.0))


@pytest.mark.param_store
def test_parameters_of_pyros_store_are_refused():
    with pytest.raises(TypeError, match=r"'loc'.*would not be trained"):
        fit(WithParam(), MultimodalDataset({"x": torch.randn(4)}), epochs=1, **QUIET)


class Custom(pyro.nn.PyroModule):
    """A story with a count, a covariate and a parameter with a constraint."""

    def __init__(self):
        super().__init__()
        self.net = pyro.nn.PyroModule[nn.Linear](2, 3)
        self.rate = pyro.nn.PyroParam(torch.tensor(1.0), dist.constraints.positive)

    def forward(self, size):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("n", dist.Poisson(self.rate * size.unsqueeze(-1) * self.net(z).exp()).to_event(1))


@pytest.mark.param_store
def test_parameters_of_a_custom_story_change():
    model = mm.observe(Custom(), ("n",))
    vae = mm.MultimodalVAE(model, mm.guides.Product(model, {"z": {"n": mm.nn.MLPEncoder(3, 2)}}))
    ds = MultimodalDataset({"n": torch.poisson(torch.full((20, 3), 4.0))}, covariates={"size": torch.ones(20)})
    before = cases.weights(vae)
    fit(vae, ds, epochs=2, **QUIET)
    assert set(cases.differing(before, cases.weights(vae))) == set(before)
    assert any("rate" in name for name in before)


@pytest.mark.param_store
def test_stock_elbo_as_objective():
    vae = cases.vae()
    vae = mm.MultimodalVAE(vae.model, vae.guide, Trace_ELBO())
    history = fit(vae, cases.data(), epochs=20, lr=0.02, validation=0.2, **QUIET)
    assert history["loss"][-1] < history["loss"][0]
    assert history.best_epoch is not None


@pytest.mark.param_store
def test_svi_after_fit_goes_on_with_the_same_parameters():
    vae, ds = cases.vae(), cases.data()
    fit(vae, ds, epochs=1, **QUIET)
    before = cases.weights(vae)
    SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), vae.objective).step(ds.data, ds.obs_mask)
    assert set(cases.differing(before, cases.weights(vae))) == set(before)


def test_keyboard_interrupt_restores_the_best_weights_and_is_raised():
    vae, after = cases.vae(), []
    vae.objective = Scripted([1.0, 2.0, 3.0])

    def interrupt(event, state):
        if event == "epoch":
            after.append(cases.weights(vae))
        if event == "step" and state.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(vae, cases.data(8), epochs=3, batch_size=8, validation=cases.data(8), callbacks=[interrupt], **QUIET)
    assert cases.differing(cases.weights(vae), after[0]) == []


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


ERRORS = {
    "batch_size 0": ({"batch_size": 0}, ValueError, "batch_size"),
    "batch_size float": ({"batch_size": 8.0}, TypeError, "batch_size"),
    "negative epochs": ({"epochs": -1}, ValueError, "epochs"),
    "epochs True": ({"epochs": True}, TypeError, "epochs"),
    "lr 0": ({"lr": 0.0}, ValueError, "lr"),
    "lr NaN": ({"lr": float("nan")}, ValueError, "lr"),
    "clip_norm negative": ({"clip_norm": -1.0}, ValueError, "clip_norm"),
    "seed float": ({"seed": 0.5}, TypeError, "seed"),
    "patience without validation": ({"patience": 3}, ValueError, "patience.*validation=0.1"),
    "patience 0": ({"patience": 0, "validation": 0.1}, ValueError, "patience"),
    "fraction 1": ({"validation": 1.0}, ValueError, "validation"),
    "fraction too small": ({"validation": 0.001}, ValueError, "empty"),
    "validation of another kind": ({"validation": {"a": torch.zeros(2)}}, TypeError, "validation.*MultimodalDataset"),
    "optimizer instance": ({"optimizer": torch.optim.SGD([torch.zeros(1)], 0.1)}, TypeError, "optimizer.*function"),
    "Pyro's optimizer": ({"optimizer": pyro.optim.Adam({"lr": 0.1})}, TypeError, "optimizer.*SVI"),
    "scheduler of another kind": ({"scheduler": 3}, TypeError, "scheduler.*function"),
    "a single callback": ({"callbacks": print}, TypeError, "callbacks"),
    "checkpoint in no folder": ({"checkpoint": "missing-folder/x.ckpt"}, ValueError, "missing-folder"),
    "resume from nothing": ({"resume": "missing.ckpt"}, FileNotFoundError, "missing.ckpt"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    options, kind, match = ERRORS[case]
    vae = cases.vae()
    before = cases.weights(vae)
    with pytest.raises(kind, match=match):
        fit(vae, cases.data(), **{"progress": False, **options})
    assert cases.differing(before, cases.weights(vae)) == []


def test_errors_of_vae_and_data():
    with pytest.raises(TypeError, match=r"ds: expected a MultimodalDataset, got dict"):
        fit(cases.vae(), {"a": torch.zeros(2, 2)}, progress=False)
    with pytest.raises(TypeError, match=r"vae.*without \['model', 'guide', 'objective'\]"):
        fit(nn.Linear(1, 1), cases.data(), progress=False)
    vae = cases.vae()
    vae.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        fit(vae, cases.data(), progress=False)
    with pytest.raises(ValueError, match=r"0 rows|no rows|empty"):
        MultimodalDataset({"a": torch.zeros(0, 2)})
    with pytest.raises(ValueError, match=r"unknown keys.*'c'"):
        fit(cases.vae(), MultimodalDataset({"c": torch.zeros(3, 2)}), progress=False)
