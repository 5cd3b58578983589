"""The laws that a model and a guide should keep, run on the user's own pair.

Layer: checks, above inference.
"""

from pyro_mmvae.checks.laws import LAWS, check
from pyro_mmvae.checks.report import Finding, Report

__all__ = ["LAWS", "Finding", "Report", "check"]
