"""Data: the container for modalities with gaps, and data that comes along or is read from files.
Layer: datasets; imports nothing of the models."""

from __future__ import annotations

from pyro_mmvae.datasets._frames_describe import Description
from pyro_mmvae.datasets.batches import Batches
from pyro_mmvae.datasets.channels import channels
from pyro_mmvae.datasets.digits import digits
from pyro_mmvae.datasets.frames import Frames
from pyro_mmvae.datasets.idx import mnist, read_idx
from pyro_mmvae.datasets.linear_gaussian import LinearGaussian, linear_gaussian
from pyro_mmvae.datasets.multimodal import MultimodalDataset
from pyro_mmvae.datasets.synthetic_cohort import Cohort, synthetic_cohort
from pyro_mmvae.datasets.tcga_brca import tcga_brca

__all__ = [
    "Batches",
    "Cohort",
    "Description",
    "Frames",
    "LinearGaussian",
    "MultimodalDataset",
    "channels",
    "digits",
    "linear_gaussian",
    "mnist",
    "read_idx",
    "synthetic_cohort",
    "tcga_brca",
]
