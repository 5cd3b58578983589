"""The clean room: each test starts from one state of torch and Pyro, and fails if it leaves another behind."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import pyro
import pytest
import torch
from pyro.poutine.runtime import _PYRO_STACK


def pytest_configure(config: pytest.Config) -> None:
    """One thread per process, as several processes share the cores; figures are never shown."""
    torch.set_num_threads(1)
    os.environ.setdefault("MPLBACKEND", "Agg")


def global_state() -> dict[str, Any]:
    """Everything outside a test that it could change for the next one."""
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.empty(0).device,
        "threads": torch.get_num_threads(),
        "grad enabled": torch.is_grad_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "anomaly detection": torch.is_anomaly_enabled(),
        "torch validation": torch.distributions.Distribution._validate_args,
        "Pyro handlers": len(_PYRO_STACK),
        **{f"pyro.settings {name}": value for name, value in pyro.settings.get().items()},
    }


def restore_state(state: dict[str, Any]) -> None:
    """Put back what :func:`global_state` saw, so that one fault does not fail the tests after it."""
    torch.set_default_dtype(state["default dtype"])
    torch.set_default_device(None if state["default device"] == torch.device("cpu") else state["default device"])
    torch.set_num_threads(state["threads"])
    torch.set_grad_enabled(state["grad enabled"])
    torch.use_deterministic_algorithms(state["deterministic algorithms"])
    torch.autograd.set_detect_anomaly(state["anomaly detection"])
    del _PYRO_STACK[state["Pyro handlers"] :]
    pyro.settings.set(**{key.split()[1]: value for key, value in state.items() if key.startswith("pyro.settings ")})
    torch.distributions.Distribution.set_default_validate_args(state["torch validation"])


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What differs between two states, one line each."""
    return [f"{name}: {before[name]} became {after[name]}" for name in before if before[name] != after[name]]


def stored_parameters(request: pytest.FixtureRequest) -> list[str]:
    """What a test left in the param store without saying so; a doctest has no marker to say it with."""
    if request.node.get_closest_marker("param_store") or isinstance(request.node, pytest.DoctestItem):
        return []
    names = sorted(pyro.get_param_store().keys())
    return [f"param store: holds {names}; clear it or mark the test param_store"] if names else []


@pytest.fixture(autouse=True)
def clean_room(request: pytest.FixtureRequest) -> Iterator[None]:
    """Empty param store, seed 0, validation on; afterwards global state must be as it was."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    pyro.enable_validation(True)
    before = global_state()
    yield
    faults = changes(before, global_state()) + stored_parameters(request)
    restore_state(before)
    pyro.clear_param_store()
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
    if faults:
        pytest.fail("the test changed global state: " + "; ".join(faults), pytrace=False)


@pytest.fixture
def float64() -> Iterator[None]:
    """Double precision as the default, for comparisons with closed forms."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
