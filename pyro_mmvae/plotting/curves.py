"""Training curves.
Layer: plotting; matplotlib is imported when a picture is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pyro_mmvae.plotting._common import axes_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["history"]

VALIDATION = ("validation_", "val_")


def history(
    history: Mapping[str, Sequence[float | None]],
    ax: Axes | None = None,
) -> Axes:
    """
    Training curves: one line per name over the epochs; a name with the prefix ``val_`` or ``validation_`` is dashed.

    A validation curve has the color of its training curve: ``val_loss`` that of ``loss`` or ``train_loss``. Epochs in
    which a value is None or NaN are skipped.

    Example::

        >>> from matplotlib.figure import Figure
        >>> ax = history({"loss": [3.0, 2.0, 1.5], "val_loss": [3.1, None, 1.9]}, Figure().subplots())
        >>> [(line.get_label(), line.get_linestyle()) for line in ax.get_lines()]
        [('loss', '-'), ('val_loss', '--')]

    :param history: name to one number per epoch; of what :func:`pyro_mmvae.fit` returns, the losses alone are drawn.
    :raises ValueError: if there is no curve.
    """
    history = getattr(history, "curves", history)
    if not history:
        raise ValueError("history: expected at least one curve, got an empty mapping.")
    from matplotlib.ticker import MaxNLocator

    ax = axes_of(ax, figsize=(6.0, 4.0))
    colors: dict[str, str] = {}
    for name, numbers in history.items():
        prefix = next((p for p in VALIDATION if name.startswith(p)), "")
        color = colors.setdefault(name.removeprefix(prefix).removeprefix("train_"), f"C{len(colors)}")
        values = np.array([np.nan if number is None else float(number) for number in numbers])
        known = ~np.isnan(values)
        epochs = np.arange(1, len(values) + 1)[known]
        marker = "." if len(epochs) < 30 else ""
        ax.plot(epochs, values[known], "--" if prefix else "-", color=color, marker=marker, label=name)
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(frameon=False)
    return ax
