"""Published methods: each chooses a story, a guide and an objective.

Layer: models, on top of everything.
"""

from pyro_mmvae.models.cmvae import CMVAE
from pyro_mmvae.models.codevae import CoDEVAE
from pyro_mmvae.models.crmvae import CRMVAE
from pyro_mmvae.models.dmvae import DMVAE
from pyro_mmvae.models.dvcca import DVCCA
from pyro_mmvae.models.gpoe import GPoE
from pyro_mmvae.models.helvae import HELVAE
from pyro_mmvae.models.jmvae import JMVAE
from pyro_mmvae.models.maskedvae import MaskedVAE
from pyro_mmvae.models.mcvae import MCVAE
from pyro_mmvae.models.mmjsd import MMJSD
from pyro_mmvae.models.mmvae import MMVAE
from pyro_mmvae.models.mmvaeplus import MMVAEPlus
from pyro_mmvae.models.mmvm import MMVM
from pyro_mmvae.models.mopoe import MoPoE
from pyro_mmvae.models.mvae import MVAE
from pyro_mmvae.models.mvtcae import MVTCAE

__all__ = [
    "CMVAE",
    "CRMVAE",
    "DMVAE",
    "DVCCA",
    "HELVAE",
    "JMVAE",
    "MCVAE",
    "MMJSD",
    "MMVAE",
    "MMVM",
    "MVAE",
    "MVTCAE",
    "CoDEVAE",
    "GPoE",
    "MMVAEPlus",
    "MaskedVAE",
    "MoPoE",
]
