"""The clean room notices what it is there to notice: each test runs a fabricated one in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyro
import pytest
import torch

from tests.conftest import changes, global_state, restore_state

ROOT = Path(__file__).parents[1]

FABRICATED = '''
import pyro, pytest, torch
from pyro.poutine.runtime import _PYRO_STACK

def test_dtype(): torch.set_default_dtype(torch.float64)
def test_device(): torch.set_default_device("meta")
def test_threads(): torch.set_num_threads(2)
def test_grad(): torch.set_grad_enabled(False)
def test_validation(): pyro.enable_validation(False)
def test_setting(): pyro.settings.set(cholesky_relative_jitter=1.0)
def test_deterministic(): torch.use_deterministic_algorithms(True)
def test_handler(): _PYRO_STACK.append(pyro.poutine.block_messenger.BlockMessenger())
def test_store(): pyro.param("w", torch.zeros(2))

@pytest.mark.param_store
def test_declared_store_passes(): pyro.param("w", torch.zeros(2))
def test_float64_passes(float64): assert torch.zeros(1).dtype == torch.float64
def test_seed_passes(): assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(0))
def test_start_passes():
    assert torch.get_num_threads() == 1 and torch.get_default_dtype() == torch.float32
    assert torch.distributions.Distribution._validate_args and not pyro.get_param_store().keys()
'''


def test_each_fault_is_reported(tmp_path):
    (tmp_path / "conftest.py").write_text("from tests.conftest import clean_room, float64, pytest_configure\n")
    (tmp_path / "test_fabricated.py").write_text(FABRICATED)
    (tmp_path / "pytest.ini").write_text(f"[pytest]\npythonpath = {ROOT}\nmarkers = param_store\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-rA", "--tb=no", "test_fabricated.py"]
    report = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout
    outcome = {
        line.split("::")[1].split()[0]: line.split()[0]
        for line in report.splitlines()
        if line.startswith(("ERROR", "FAILED", "PASSED")) and "::" in line
    }
    faults = ["dtype", "device", "threads", "grad", "validation", "setting", "deterministic", "handler", "store"]
    fine = ["declared_store_passes", "float64_passes", "seed_passes", "start_passes"]
    expected = {f"test_{name}": "ERROR" for name in faults} | {f"test_{name}": "PASSED" for name in fine}
    assert outcome == expected, report


def test_state_is_restored():
    before = global_state()
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    pyro.enable_validation(False)
    assert len(changes(before, global_state())) >= 3
    restore_state(before)
    assert changes(before, global_state()) == []


def test_float64(float64):
    assert torch.ones(1).dtype == torch.float64


@pytest.mark.param_store
def test_declared_parameters_may_stay():
    pyro.param("w", torch.zeros(1))
