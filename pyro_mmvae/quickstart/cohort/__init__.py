"""A program: CSV files with gaps in, completed CSV files with intervals out, and how far they can be trusted.

Layer: quickstart. ``python -m pyro_mmvae.quickstart --tables a.csv b.csv`` runs ``command.py``, which is the file to
read first: the tables are read (``reading.py``), known cells are hidden (``hiding.py``) and predicted again
(``heldout.py``), also by simpler methods (``baselines.py``, ``encoding.py``), and what was found is printed
(``report.py``), written (``writing.py``) and drawn (``pictures.py``). What is trained, the quickstart's ``recipe.py``
says.
"""

from __future__ import annotations

__all__ = []
