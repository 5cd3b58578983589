"""The comparison with multivae is not skipped where the test command has installed it."""

from __future__ import annotations

import importlib
import os

import pytest


@pytest.mark.extra
@pytest.mark.skipif("REQUIRE_EXTRAS" not in os.environ, reason="multivae is optional outside `make test`")
def test_multivae_is_there() -> None:
    assert importlib.import_module("multivae").__name__ == "multivae"
