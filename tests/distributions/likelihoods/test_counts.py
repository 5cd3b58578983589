"""Counts given as integers, against scipy in double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from pyro_mmvae.distributions.likelihoods import Binomial, NegativeBinomial, Poisson

COUNTS = torch.tensor([0, 3, 40, 999])
HALF = torch.tensor(0.5, dtype=torch.float64)
CASES = {
    "binomial": (Binomial(HALF.new_tensor(1000.0), logits=HALF * 0), stats.binom(1000, 0.5)),
    "negative_binomial": (NegativeBinomial(HALF * 3, probs=HALF), stats.nbinom(1.5, 0.5)),
    "poisson": (Poisson(HALF * 80), stats.poisson(40.0)),
}


@pytest.mark.parametrize("name", CASES)
def test_integer_values_are_exact_in_float64(name):
    fn, reference = CASES[name]
    value = fn.expand([4]).log_prob(COUNTS)
    assert value.dtype == torch.float64
    np.testing.assert_allclose(value.numpy(), reference.logpmf(COUNTS.numpy()), rtol=1e-11)
    assert type(fn.expand([4])) is type(fn)


@pytest.mark.parametrize("name", CASES)
def test_values_outside_are_refused(name):
    with pytest.raises(ValueError, match="support"):
        CASES[name][0].log_prob(torch.tensor(-1))
