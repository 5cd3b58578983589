"""Published methods: each chooses a story, a guide and an objective.

Layer: models, on top of everything.
"""

from pyro_mmvae.models.jmvae import JMVAE
from pyro_mmvae.models.mmvae import MMVAE
from pyro_mmvae.models.mopoe import MoPoE
from pyro_mmvae.models.mvae import MVAE
from pyro_mmvae.models.mvtcae import MVTCAE

__all__ = ["JMVAE", "MMVAE", "MVAE", "MVTCAE", "MoPoE"]
