"""An encoder of sets of modalities by attention among those that are shown.

Layer: nn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt

import torch
from torch import Tensor, nn

from pyro_mmvae.nn.config import Configurable
from pyro_mmvae.nn.covariates import Columns
from pyro_mmvae.nn.mlp import mlp, positive_int
from pyro_mmvae.nn.set_encoders import SetEncoder, Shapes

__all__ = ["AttentionEncoder"]


class AttentionEncoder(Configurable, SetEncoder):
    r"""
    Posterior of any set of modalities by attention among its members [1, section 4; 2].

    The tokens :math:`t_m = W_m g_m(x_m) + e_m` pass L blocks with normalization first,

    .. math:: t \leftarrow t + \mathrm{attention}(\mathrm{norm}(t)), \qquad
        t \leftarrow t + \mathrm{mlp}(\mathrm{norm}(t)),

    in which modality i attends to j where both are shown (the mask :math:`o o^\top`); then
    :math:`q(z \mid x_S) = \mathrm{head}(\rho(\sum_{m \in S} t_m))`. With no blocks it is :class:`SumPoolingEncoder`.

    Laws: the order of modalities does not matter; what is outside the set has weight zero, exactly.

    Example::

        >>> enc = AttentionEncoder({"image": (4, 8), "rna": 6}, 3, num_components=2)
        >>> q = enc({"image": torch.zeros(5, 4, 8), "rna": torch.zeros(5, 6)}, torch.ones(5, 2, dtype=torch.bool))
        >>> q.batch_shape, q.event_shape
        (torch.Size([5]), torch.Size([3]))

    :param num_heads: of the attention; a divisor of F.
    :param num_blocks: L.
    :raises ValueError: as :class:`SetEncoder`, and if ``num_heads`` does not divide F.

    See :class:`SetEncoder` for the other parameters.

    [1] *Learning multi-modal generative models with permutation-invariant encoders and tighter variational objectives*,
    Hirt, Campolo, Leong and Ortega, TMLR 2024, arXiv:2309.00380.
    [2] *Set Transformer*, Lee et al., ICML 2019, arXiv:1810.00825.
    """

    def __init__(
        self,
        shapes: Shapes,
        latent_dim: int,
        *,
        hidden: Sequence[int] = (256, 256),
        features: Sequence[int] = (256, 128),
        num_heads: int = 4,
        num_blocks: int = 2,
        num_components: int = 1,
        num_classes: Mapping[str, int] | None = None,
        networks: Mapping[str, nn.Module] | None = None,
        mask: bool = False,
        context: Columns = None,
    ) -> None:
        super().__init__(
            shapes,
            latent_dim,
            hidden=hidden,
            features=features,
            num_components=num_components,
            num_classes=num_classes,
            networks=networks,
            mask=mask,
            context=context,
        )
        if self.width % positive_int(num_heads, "num_heads"):
            raise ValueError(
                f"AttentionEncoder: {num_heads} heads do not divide features of width {self.width}. Fix: a divisor."
            )
        self.blocks = nn.ModuleList(_Block(self.width, num_heads) for _ in range(num_blocks))

    def pool(self, shown: Tensor, mask: Tensor) -> Tensor:  # shape: (*batch, F)
        itself = torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)  # no row of scores is empty
        allowed = (mask.unsqueeze(-1) & mask.unsqueeze(-2)) | itself
        for block in self.blocks:
            shown = block(shown, allowed)
        return torch.where(mask.unsqueeze(-1), shown, torch.zeros_like(shown)).sum(-2)


class _Block(nn.Module):
    """Self-attention and an MLP, each after a normalization and added to its input."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = mlp(width, (2 * width,), width)

    def forward(
        self,
        tokens: Tensor,  # shape: (*batch, M, F)
        allowed: Tensor,  # shape: (*batch, M, M), bool, True = attends to
    ) -> Tensor:  # shape: (*batch, M, F)
        parts = self.qkv(self.norm_attention(tokens)).chunk(3, -1)
        query, key, value = (p.unflatten(-1, (self.num_heads, -1)).transpose(-2, -3) for p in parts)
        scores = query @ key.transpose(-1, -2) / sqrt(query.shape[-1])  # shape: (*batch, heads, M, M)
        weights = scores.masked_fill(~allowed.unsqueeze(-3), -torch.inf).softmax(-1)
        tokens = tokens + self.out((weights @ value).transpose(-2, -3).flatten(-2))
        return tokens + self.mlp(self.norm_mlp(tokens))
