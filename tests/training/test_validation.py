"""Validation: the loss, the best weights, early stopping, the clock."""

from __future__ import annotations

import pytest
import torch

import pyro_mmvae as mm
from pyro_mmvae.training import fit
from tests.training import cases

QUIET = {"progress": False, "seed": 0}


def test_validation_runs_in_evaluation_mode_without_gradient():
    vae, seen = cases.vae(), []
    vae.guide.register_forward_pre_hook(lambda module, args: seen.append((module.training, torch.is_grad_enabled())))
    fit(vae, cases.data(), epochs=1, validation=0.25, **QUIET)
    assert set(seen) == {(True, True), (False, False)}


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
