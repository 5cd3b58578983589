"""Likelihoods with a closed form: which of multivae's are right, and that those here are."""

from __future__ import annotations

import pytest

pytest.importorskip("multivae", reason="an extra of the tests; make test installs it", exc_type=ImportError)
pytestmark = pytest.mark.extra

RUNS = 4


def _table():
    from benchmarks.multivae_likelihoods import TABLE

    return TABLE


@pytest.mark.parametrize("row", _table(), ids=lambda row: row.name)
def test_against_the_closed_form(row):
    from benchmarks.multivae_likelihoods import estimates

    exact, there, here = estimates(row, particles=100 if row.conditional else 200, runs=RUNS)
    assert here is not None
    # the logarithm is biased downwards by half the variance, far below the standard error; 0.02 is a floor for it
    assert abs(here.mean() - exact) < 4 * max(here.std() / RUNS**0.5, 0.02)
    if row.name == "MVAE, joint":  # right there, too
        assert abs(there.mean() - exact) < 4 * max(there.std() / RUNS**0.5, 0.02)
    elif row.name != "MoPoE, joint":  # where errors of opposite sign happen to cancel between samples
        assert abs(there.mean() - exact) > 0.08
