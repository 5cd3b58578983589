"""The laws as a user runs them: ``mm.check`` finds nothing in any method.

Test layer.
"""

from __future__ import annotations

import pytest

import pyro_mmvae as mm
from tests.conformance.cases import Case

#: What may be said beside "holds": what a law cannot look at in some methods, with the reason.
SILENT = {"training and evaluation agree", "parameters are registered"}


@pytest.mark.law("check")
@pytest.mark.parametrize("per_feature", [False, True], ids=["sample_mask", "feature_mask"])
def test_the_check_of_users_pairs_passes(case: Case, per_feature: bool) -> None:
    p = case.make(per_feature=per_feature)
    vae = case.vae(p, lazy=True)
    report = mm.check(vae.model, vae.guide, p.data, p.obs_mask, objective=vae.objective)
    assert report, str(report)
    others = [f for f in report.findings if f.status != "holds" and f.law not in SILENT]
    assert not others, "\n".join(map(str, others))
