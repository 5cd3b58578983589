"""Weights of terms that are learned.

Layer: objectives.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["LearnedWeights"]


class LearnedWeights(nn.Module):
    r"""
    Weights of a term's rows, a softmax of parameters over the rows that are valid in a sample.

    .. math:: c_j = \frac{v_j e^{\eta_j}}{\sum_i v_i e^{\eta_i}}, \qquad
        \text{and } a \, H(c) = -a \sum_j c_j \log c_j \text{ is added to the objective}

    with v = 1 for valid rows. Every row is drawn and evaluated, so that the gradient with respect to the weights,
    :math:`\sum_j T_j \, \partial c_j`, is exact given the terms' values: stratified.

    Example::

        >>> weights = LearnedWeights(3)
        >>> weights(torch.tensor([[True], [True], [False]])).squeeze(-1).tolist()
        [0.5, 0.5, 0.0]

    :param count: number of rows that the term's selectors give.
    :param entropy: a >= 0, nats of the objective per nat of entropy: weights that all stay in use.
    """

    def __init__(self, count: int, *, entropy: float = 0.0) -> None:
        super().__init__()
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"LearnedWeights: expected a positive number of rows, got {count!r}.")
        if not entropy >= 0:
            raise ValueError(f"LearnedWeights: entropy must be >= 0, got {entropy}.")
        self.count, self.entropy = count, entropy
        self.logits = nn.Parameter(torch.zeros(count))

    def forward(
        self,
        valid: Tensor,  # shape: (J, B), bool
    ) -> Tensor:  # shape: (J, B)
        """The weights, 0 where a row is not valid."""
        if len(valid) != len(self.logits):
            raise ValueError(f"LearnedWeights: {len(self.logits)} weights for a term of {len(valid)} rows.")
        safe = valid | ~valid.any(0)
        logits = self.logits.unsqueeze(-1).expand(valid.shape).masked_fill(~safe, -torch.inf)
        return torch.where(valid, logits.softmax(0), 0.0)

    def bonus(
        self,
        weights: Tensor,  # shape: (J, B)
    ) -> Tensor:  # shape: (B,)
        """The entropy's part of the objective, nats."""
        return -self.entropy * torch.special.xlogy(weights, weights.masked_fill(weights == 0, 1.0)).sum(0)

    def extra_repr(self) -> str:
        return f"{len(self.logits)}, entropy={self.entropy}"
