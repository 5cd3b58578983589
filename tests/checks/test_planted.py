"""Each planted mistake is found by its law and named; its healthy twin passes everything.

Test layer.
"""

from __future__ import annotations

import pytest

import pyro_mmvae as mm
from tests.checks.mistakes import batch
from tests.checks.planted import Planted, planted

CASES = pytest.mark.parametrize("case", planted(), ids=lambda case: case.name)


@CASES
def test_a_mistake_is_found_and_named(case: Planted) -> None:
    report = mm.check(*case.sick(), *batch())
    found = report[case.law]
    assert found.status == "broken", str(report)
    assert {name: getattr(found, name) for name in case.where} == dict(case.where), str(found)
    assert found.message
    assert found.fix.endswith(".")
    assert not report
    with pytest.raises(ValueError, match=case.law):
        report.raise_if_broken()


@CASES
def test_the_healthy_twin_passes(case: Planted) -> None:
    report = mm.check(*case.healthy(), *batch())
    assert report, str(report)
    assert not [f for f in report.findings if f.message.startswith("could not")]
    report.raise_if_broken()


def test_laws_that_a_mistake_does_not_touch_still_hold() -> None:
    """Most mistakes break one law or two: the report points at them, and not at everything."""
    counts = [len(mm.check(*case.sick(), *batch()).broken) for case in planted()]
    assert sorted(counts)[len(counts) // 2] == 1
    assert max(counts) <= 5
