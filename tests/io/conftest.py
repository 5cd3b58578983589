"""A model that was trained and saved."""

from __future__ import annotations

import pytest

from tests.io import cases


@pytest.fixture
def saved(tmp_path):
    """A trained MVAE and its folder."""
    vae = cases.MODELS["MVAE"]()
    cases.train(vae, cases.batch("MVAE"))
    vae.save(tmp_path / "mvae")
    return vae, tmp_path / "mvae"
