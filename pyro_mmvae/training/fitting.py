"""``fit``: training as one call.

Layer: training.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from os import PathLike
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyro_mmvae.datasets import MultimodalDataset
from pyro_mmvae.training.history import Callback, History
from pyro_mmvae.training.loop import train
from pyro_mmvae.training.options import Options, check_dataset, check_vae

__all__ = ["fit"]


def fit(
    vae: nn.Module,
    ds: MultimodalDataset,
    *,
    epochs: int = 50,
    batch_size: int | None = None,
    lr: float = 1e-3,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
    scheduler: Callable[[Any], LRScheduler] | None = None,
    clip_norm: float | None = None,
    validation: MultimodalDataset | float | None = None,
    patience: int | None = None,
    callbacks: Collection[Callback] = (),
    progress: bool = True,
    seed: int | None = None,
    device: torch.device | str | None = None,
    checkpoint: str | PathLike[str] | None = None,
    resume: str | PathLike[str] | None = None,
    trace: bool | None = None,
) -> History:
    r"""
    Train a model, its guide and its objective on a data set in which anything may be missing.

    Semantically equivalent to::

        for epoch in range(epochs):
            for data, obs_mask in ds.batches(batch_size, shuffle=True):
                optimizer.zero_grad()
                loss = vae.objective.differentiable_loss(vae.model, vae.guide, data, obs_mask) / len(batch)
                loss.backward()
                optimizer.step()
                vae.objective.advance()                  # the annealing clock

    The data set is checked and filled once, cast to the dtype of the parameters and moved to their device, if it fits
    into half of the free memory there (else batch by batch). Where the model's plate scales the loss up to ``size``
    rows, it is divided by these.

    With a seed the run is reproducible (order of rows, split, dropout, draws), and torch's global random state is left
    as found; without one it goes on from the global state. Modules are left in the mode (``train``, ``eval``) they were
    found in.

    With validation data the weights with the lowest validation loss are put back at the end; epochs count, for this and
    for ``patience``, once the annealing of the objective (``annealing_steps``) is over. The validation loss uses the
    same noise in every epoch. After a ``KeyboardInterrupt`` the same weights are put back, then it is raised again.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> import pyro_mmvae as mm
        >>> class VAE(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.model = mm.observe(self.story, ("x",), modules={})
        ...         self.guide = mm.guides.Product(self.model, {"x": mm.nn.MLPEncoder(2, 1)})
        ...         self.objective = mm.ELBO()
        ...     @staticmethod
        ...     def story():
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(z.expand(z.shape[:-1] + (2,)), 1.0).to_event(1))
        >>> ds = mm.datasets.MultimodalDataset({"x": torch.randn(20, 1).expand(20, 2)})
        >>> history = fit(VAE(), ds, epochs=3, validation=0.2, progress=False, seed=0)
        >>> history["epoch"], len(history["val_loss"])
        ([1, 2, 3], 3)

    :param vae: a module with the attributes ``model``, ``guide`` and ``objective``. All its parameters that require a
        gradient are trained.
    :param epochs: passes over the data, in total: a resumed run makes the rest of them.
    :param batch_size: rows per step; the last batch of an epoch may be smaller. None: 128, or less below 1,024 rows, so
        that an epoch has about eight steps, but at least 16.
    :param lr: learning rate of Adam, fused where possible, with the weight decay that modules ask for by an attribute
        ``weight_decay`` (those that ``for_data`` makes for few rows do); not used if ``optimizer`` is given.
    :param optimizer: parameters -> any torch optimizer that needs no closure, e.g. ``lambda p: AdamW(p, lr=1e-3)``.
    :param scheduler: optimizer -> a schedule, stepped once per epoch; ``ReduceLROnPlateau`` gets the validation loss,
        or the training loss without validation data.
    :param clip_norm: largest 2-norm of the gradient of the loss per row.
    :param validation: a data set, or the fraction of rows to hold out.
    :param patience: stop after so many epochs without a better validation loss.
    :param callbacks: called as ``f(event, state)`` at "train_start", "stage", each "step", "validation" and "epoch",
        and at the "end", when the best weights are back; see :class:`State`.
    :param progress: whether to show a progress bar.
    :param device: where to train, ``vae`` is moved there; default: where its parameters are.
    :param checkpoint: file to write after each epoch: weights, optimizer, schedule, random states, history; no data.
    :param resume: such a file: go on as if the run had not stopped. The learning rate is the one in the file. Without
        a seed torch's global random state becomes the one in the file.
    :param trace: record the step as one graph and replay it, which leaves Python's bookkeeping out; None: in runs of
        at least 200 steps, for modules of the library and of torch (others may decide anew at each call, True says
        that they do not). Where many
        rows are hidden and networks are large, steps run the observed rows alone and are not recorded.
    :raises TrainingDiverged: if the loss or a gradient is not finite, naming step, modality and site; the parameters
        are those after the last good step.
    :raises ValueError: for options out of range, data that the model refuses, a file that is no checkpoint of this run.
    :raises TypeError: for arguments of the wrong kind, and for parameters that are in Pyro's store only.
    """
    check_vae(vae)
    check_dataset("ds", ds)
    size = max(16, min(128, len(ds) // 8)) if batch_size is None else batch_size
    options = Options(
        epochs=epochs, batch_size=size, lr=lr, optimizer=optimizer, scheduler=scheduler, clip_norm=clip_norm,
        validation=validation, patience=patience, callbacks=callbacks, progress=progress, seed=seed, device=device,
        checkpoint=checkpoint, resume=resume, trace=trace,
    )  # fmt: skip
    return train(vae, ds, options)
