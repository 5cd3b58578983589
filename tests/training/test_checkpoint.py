"""A resumed run is the uninterrupted one; files are checked, and hold no data."""

from __future__ import annotations

import io
import pickle
import zipfile

import pytest
import torch

from pyro_mmvae.datasets import MultimodalDataset
from pyro_mmvae.training import checkpoint, fit
from tests.training import cases

OPTIONS = {
    "batch_size": 16,
    "lr": 0.02,
    "progress": False,
}

RUNS = {
    "seed": {"seed": 4},
    "no seed": {},
    "validation": {"seed": 4, "validation": 0.25, "patience": 5},
    "validation, no seed": {"validation": 0.25},
    "schedule": {"seed": 4, "scheduler": lambda o: torch.optim.lr_scheduler.StepLR(o, 3, gamma=0.5)},
    "plateau": {"seed": 4, "scheduler": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0)},
    "momentum": {"seed": 4, "optimizer": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9), "clip_norm": 1.0},
}


@pytest.mark.parametrize("name", RUNS)
def test_resumed_equals_uninterrupted(name, tmp_path):
    options, path = {**OPTIONS, **RUNS[name]}, tmp_path / "run.ckpt"
    start = torch.get_rng_state()
    whole = cases.vae(dropout=0.3, warmup=20, seed=3)
    expected = fit(whole, cases.data(), epochs=5, **options)
    end = torch.get_rng_state()
    torch.set_rng_state(start)
    first = cases.vae(dropout=0.3, warmup=20, seed=3)
    fit(first, cases.data(), epochs=2, checkpoint=path, **options)
    torch.rand(3)  # whatever happened in between
    second = cases.vae(dropout=0.3, warmup=20, seed=9)
    history = fit(second, cases.data(), epochs=5, resume=path, **options)
    for key in expected.keys() - {"seconds"}:
        assert history[key] == expected[key], key
    assert history.best_epoch == expected.best_epoch
    assert cases.differing(dict(whole.state_dict()), dict(second.state_dict())) == []
    assert second.objective.step == whole.objective.step
    if "seed" not in options:
        assert torch.equal(end, torch.get_rng_state())
    assert history["seconds"] == sorted(history["seconds"])


def test_best_epoch_before_the_interruption_is_remembered(tmp_path):
    path = tmp_path / "run.ckpt"
    options = {
        **OPTIONS,
        "validation": 0.25,
        "seed": 1,
        "optimizer": lambda p: torch.optim.SGD(p, lr=0.01, maximize=True),
    }
    vae, after = cases.vae(), []
    history = fit(
        vae, cases.data(), epochs=1, checkpoint=path,
        callbacks=[lambda e, s: after.append(cases.weights(vae)) if e == "epoch" else None], **options,
    )  # fmt: skip
    other = cases.vae(seed=8)
    history = fit(other, cases.data(), epochs=3, resume=path, **options)
    assert history.best_epoch == 1
    assert cases.differing(cases.weights(other), after[0]) == []


def test_a_finished_or_stopped_run_stays_so(tmp_path):
    path, steps = tmp_path / "run.ckpt", []
    vae = cases.vae()
    fit(vae, cases.data(), epochs=2, seed=0, checkpoint=path, **OPTIONS)
    again = cases.vae(seed=9)
    history = fit(
        again, cases.data(), epochs=2, seed=0, resume=path, callbacks=[lambda e, s: steps.append(e)], **OPTIONS
    )
    assert steps == ["train_start", "stage", "end"]
    assert history["epoch"] == [1, 2]
    assert cases.differing(cases.weights(vae), cases.weights(again)) == []


def test_events_and_bar_of_a_resumed_run(tmp_path, capsys):
    path, seen = tmp_path / "run.ckpt", []
    options = {**OPTIONS, "progress": True, "seed": 0}
    fit(cases.vae(), cases.data(), epochs=1, checkpoint=path, **options)
    capsys.readouterr()
    fit(cases.vae(), cases.data(), epochs=2, resume=path, callbacks=[lambda e, s: seen.append((e, s.epoch))], **options)
    assert seen[0] == ("train_start", 1) and ("epoch", 2) in seen and ("epoch", 1) not in seen
    assert "6/6" in capsys.readouterr().err


def test_no_row_label_or_name_of_a_sample_in_the_file(tmp_path):
    """Planted: a number that no computation gives, in the data, the covariates' place, the labels."""
    planted = torch.tensor(0.123456789, dtype=torch.float64)
    x = torch.randn(20, 2, dtype=torch.float64)
    x[:, 0] = planted
    ds = MultimodalDataset({"a": x, "b": torch.randn(20, 3, dtype=torch.float64)}, labels=["planted-label"] * 20)
    path = tmp_path / "run.ckpt"
    fit(cases.vae().double(), ds, epochs=1, checkpoint=path, validation=0.2, seed=0, **OPTIONS)
    buffer = io.BytesIO()
    with zipfile.ZipFile(path) as file:
        content = b"".join(file.read(name) for name in file.namelist())
    for secret in (planted.numpy().tobytes(), planted.float().numpy().tobytes(), b"planted-label"):
        assert secret not in content
    torch.save(planted, buffer)
    assert planted.numpy().tobytes() in buffer.getvalue()  # it would be seen


def test_a_view_does_not_bring_its_storage_along(tmp_path):
    vae = cases.vae()
    rows = torch.full((1000,), 0.123456789)
    vae.register_buffer("first", rows[:1])
    fit(vae, cases.data(), epochs=1, checkpoint=tmp_path / "run.ckpt", seed=0, **OPTIONS)
    with zipfile.ZipFile(tmp_path / "run.ckpt") as file:
        content = b"".join(file.read(name) for name in file.namelist())
    assert content.count(rows[:1].numpy().tobytes()) == 1


def saved(tmp_path, **options):
    path = tmp_path / "run.ckpt"
    fit(cases.vae(), cases.data(), epochs=1, checkpoint=path, **{"seed": 0, **OPTIONS, **options})
    return path


def refused(path, match, vae=None, **options):
    vae = cases.vae(seed=9) if vae is None else vae
    before = cases.weights(vae)
    with pytest.raises(ValueError, match=match) as error:
        fit(vae, cases.data(), epochs=2, resume=path, **{"seed": 0, **OPTIONS, **options})
    assert path.name in str(error.value)
    assert cases.differing(before, cases.weights(vae)) == []


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_truncated_files_are_refused(share, tmp_path):
    path = saved(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refused(path, "no checkpoint of fit|cannot be read")


def test_a_flipped_byte_is_seen(tmp_path):
    path = saved(tmp_path)
    with zipfile.ZipFile(path) as file:
        tensors = [info for info in file.infolist() if "/data/" in info.filename]
        largest = max(tensors, key=lambda info: info.file_size)
    content = bytearray(path.read_bytes())
    content[largest.header_offset + largest.file_size // 2] ^= 1
    path.write_bytes(bytes(content))
    refused(path, "damaged")


class Evil:
    """Runs code when unpickled."""

    def __reduce__(self):
        return pytest.fail, ("the file was executed",)


def test_other_files_are_refused_and_nothing_in_them_runs(tmp_path):
    path = tmp_path / "run.ckpt"
    path.write_text("no checkpoint")
    refused(path, "no checkpoint of fit")
    path.write_bytes(pickle.dumps(Evil()))
    refused(path, "no checkpoint of fit")
    torch.save({"weights": Evil()}, path)
    refused(path, "cannot be read")
    torch.save(cases.vae().state_dict(), path)
    refused(path, "no checkpoint of fit")
    torch.save({"format": checkpoint.FORMAT, "version": 99}, path)
    refused(path, "another version")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"batch_size": 8}, "batch_size = 16, this call has 8"),
        ({"seed": 1}, "seed"),
        ({"validation": 0.2}, "rows"),
        ({"optimizer": lambda p: torch.optim.SGD(p, lr=0.1)}, "optimizer = 'Adam'.*'SGD'"),
        ({"scheduler": lambda o: torch.optim.lr_scheduler.StepLR(o, 1)}, "scheduler"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:9],
)
def test_another_run_is_refused(options, match, tmp_path):
    refused(saved(tmp_path), match, **options)


def test_another_model_is_refused(tmp_path):
    vae = cases.vae(seed=9)
    vae.extra = torch.nn.Linear(1, 1)
    refused(saved(tmp_path), "another model.*'extra", vae=vae)


def test_the_file_is_replaced_whole(tmp_path, monkeypatch):
    path = saved(tmp_path)
    before = path.read_bytes()

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.write(path, {})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["run.ckpt"]


class Odd(torch.optim.SGD):
    """An optimizer with an object in its state."""

    def state_dict(self):
        return {**super().state_dict(), "object": Evil}


def test_a_state_that_only_code_could_restore_is_not_written(tmp_path):
    with pytest.raises(TypeError, match=r"checkpoint: 'optimizer' holds more than tensors"):
        saved(tmp_path, optimizer=lambda p: Odd(p, lr=0.1))
    assert list(tmp_path.iterdir()) == []
