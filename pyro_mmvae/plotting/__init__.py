"""Pictures: generated images, the latent space, training curves, missingness. Each returns the axes and takes ``ax``.
Layer: plotting; matplotlib is imported when a picture is drawn."""

from __future__ import annotations

from pyro_mmvae.plotting._common import MISSING, OBSERVED
from pyro_mmvae.plotting.curves import history
from pyro_mmvae.plotting.gaps import missingness
from pyro_mmvae.plotting.images import grid
from pyro_mmvae.plotting.points import latent

__all__ = ["MISSING", "OBSERVED", "grid", "history", "latent", "missingness"]
