"""Batches in their inside form: checked and filled once, cut by indexing whole tensors.

Layer: training.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pyro_mmvae.datasets import Batches, MultimodalDataset
from pyro_mmvae.masks import Data, ObsMask

__all__ = ["PreparedBatches", "make_batches"]

#: Share of the free device memory that data may take; a larger data set stays on the host.
DEVICE_SHARE = 0.5


class PreparedBatches:
    """
    A re-iterable of batches ``(Data, ObsMask)`` that pass the door unchecked.

    Semantically equivalent to ``model.prepare`` on every batch, without its checks: rows are taken from tensors that
    were prepared as a whole. The masks come with ``index``, the rows in which each modality is observed, found on the
    host, so that no later step has to wait for the device. The last batch may be smaller.

    Example::

        >>> from pyro_mmvae.masks import normalize
        >>> data = Data({"a": torch.arange(5.0)})
        >>> data.size, data.filled = 5, True
        >>> obs_mask = normalize({"a": torch.tensor([True, True, False, True, False])}, {"a": ()}, 5)
        >>> for x, mask in PreparedBatches(data, obs_mask, 3):
        ...     print(x.size, x["a"].tolist(), mask.index["a"].tolist())
        3 [0.0, 1.0, 2.0] [0, 1]
        2 [3.0, 4.0] [0]

    :param data: prepared data of all rows, see ``ObservedModel.prepare``.
    :param obs_mask: prepared masks of all rows.
    :param batch_size: rows per batch.
    :param generator: shuffles, one permutation per iteration; None: in order.
    :raises ValueError: if ``batch_size`` is below 1.
    """

    def __init__(
        self, data: Data, obs_mask: ObsMask, batch_size: int, *, generator: torch.Generator | None = None
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}.")
        self.data, self.batch_size, self.generator = data, batch_size, generator
        self.names, self.event_dims = tuple(obs_mask), obs_mask.event_dims
        self.rows = torch.stack([obs_mask.rows[m] for m in self.names])  # shape: (M, N)
        self.host = self.rows.cpu()
        self.features = {m: mask for m, mask in obs_mask.items() if mask[0].numel() > 1}

    @property
    def num_rows(self) -> int:
        """Number of rows, N."""
        return self.rows.shape[1]

    def __len__(self) -> int:
        return -(-self.num_rows // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Data, ObsMask]]:
        if self.generator is None:
            order = torch.arange(self.num_rows, device="cpu")
        else:
            order = torch.randperm(self.num_rows, generator=self.generator, device="cpu")
        parts = order.to(self.rows.device).split(self.batch_size)
        for here, there in zip(order.split(self.batch_size), parts, strict=True):
            yield self._cut(here, there)

    def _cut(self, on_host: Tensor, rows: Tensor) -> tuple[Data, ObsMask]:
        data = Data({name: x.index_select(0, rows) for name, x in self.data.items()})
        data.size, data.filled = len(rows), True
        observed = self.rows.index_select(1, rows)
        masks = ObsMask.of_rows(dict(zip(self.names, observed.unbind(), strict=True)), self.event_dims)
        for m, mask in self.features.items():
            masks[m] = mask.index_select(0, rows)
        known = self.host.index_select(1, on_host)
        masks.host = known.t()
        for i, m in enumerate(self.names):
            masks.index[m] = known[i].nonzero().squeeze(-1).to(rows.device, non_blocking=True)
        return data, masks


class DoorBatches:
    """
    Batches that pass the door one by one: for models without a ``prepare``, and for data larger than the device.

    :param batches: cut from the data set where it lies.
    :param device: where the batches go.
    """

    def __init__(self, batches: Batches, device: torch.device) -> None:
        self.batches, self.device = batches, device

    @property
    def num_rows(self) -> int:
        """Number of rows, N."""
        return self.batches.num_rows

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        for batch in self.batches:
            data, obs_mask = ({m: x.to(self.device, non_blocking=True) for m, x in part.items()} for part in batch)
            yield data, obs_mask


def make_batches(
    vae: nn.Module,
    ds: MultimodalDataset,
    batch_size: int,
    device: torch.device,
    generator: torch.Generator | None = None,
) -> PreparedBatches | DoorBatches:
    """
    The batches of a data set for a model, in the dtype of its parameters, on ``device``.

    :raises ValueError: whatever the model's door refuses.
    """
    dtypes = {p.dtype for p in vae.parameters() if p.is_floating_point()}
    dtype = dtypes.pop() if len(dtypes) == 1 else None
    prepare = getattr(vae.model, "prepare", None)
    if prepare is None or not _fits(ds, device):
        cast = ds.to(dtype=dtype)
        batches = Batches(cast.data, cast.obs_mask, batch_size, shuffle=generator is not None, generator=generator)
        return DoorBatches(batches, device)
    moved = ds.to(device, dtype=dtype)
    data, obs_mask = prepare(moved.data, moved.obs_mask)
    return PreparedBatches(data, obs_mask, batch_size, generator=generator)


def _fits(ds: MultimodalDataset, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    coming = [x for x in (*ds.data.values(), *ds.obs_mask.values()) if x.device != device]
    needed = 2 * sum(x.numel() * x.element_size() for x in coming)  # the data, and its filled copy
    return needed <= DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]
