"""The completed tables, their uncertainty and the latents as CSV files.

Layer: quickstart.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyro_mmvae.datasets import MultimodalDataset
from pyro_mmvae.quickstart.cohort.heldout import LEVEL
from pyro_mmvae.vae import MultimodalVAE

__all__ = ["write_all"]

DRAWS = 200


def write_all(
    vae: MultimodalVAE, ds: MultimodalDataset, heldout: Any, scores: Any, output: Path
) -> Iterator[tuple[Path, str]]:
    """
    Write everything into a folder; each file as soon as it is there, with what it holds.

    ``imputed_<modality>.csv`` has all samples and all columns, observed cells as they came; beside it lie the standard
    deviations of what was filled in (0 where observed, empty for classes) and the ends of the central 90 % intervals.

    :param heldout: pandas.DataFrame of hidden cells and their predictions; ``scores``: what follows from it.
    """
    output.mkdir(parents=True, exist_ok=True)
    full = vae.impute(ds, num_samples=DRAWS, progress=False)
    lower, upper = full.interval(LEVEL)
    for m in ds.modalities:
        gaps = int(full.gaps[m].cells.sum())
        yield _written(full.mean[m], output / f"imputed_{m}.csv"), f"{m}, {gaps:,} missing cells filled in"
        yield _written(full.sd[m], output / f"imputed_{m}_sd.csv"), "standard deviations of these, 0 where observed"
        yield _written(lower[m], output / f"imputed_{m}_lower.csv"), f"lower ends of {LEVEL * 100:g} % intervals"
        yield _written(upper[m], output / f"imputed_{m}_upper.csv"), "upper ends"
    latent = vae.posterior(ds, progress=False).to_frame()
    yield _written(latent, output / "latent.csv"), "the latent of each sample: posterior means and standard deviations"
    yield _written(heldout, output / "heldout_cells.csv", index=False), "each hidden cell, its truth and predictions"
    yield _written(scores, output / "heldout_scores.csv", index=False), "the table above"


def _written(frame: Any, path: Path, **options: Any) -> Path:
    frame.to_csv(path, **options)
    return path
