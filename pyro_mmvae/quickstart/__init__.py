"""A program: handwritten digits in three modalities, half of all entries hidden, learned and put to use.

Layer: quickstart. ``python -m pyro_mmvae.quickstart`` runs ``__main__.py``, which is the file to read: the data, the
story, the networks, the objective and the training loop. Beside it lie the figures that are printed
(:mod:`~pyro_mmvae.quickstart.scores`, :mod:`~pyro_mmvae.quickstart.baselines`,
:mod:`~pyro_mmvae.quickstart.tables`) and the pictures (:mod:`~pyro_mmvae.quickstart.pictures`).

With ``--tables a.csv b.csv`` it completes tables of your own instead: :mod:`~pyro_mmvae.quickstart.cohort`.
"""

from __future__ import annotations

__all__ = []
