"""Taking out of a recorded graph what autograd's bookkeeping left in it.

Layer: training.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

__all__ = ["tidy"]

_ATEN = torch.ops.aten
_NOTHING = {_ATEN.detach.default, _ATEN.alias.default, _ATEN.lift_fresh_copy.default}
_RESHAPES = {_ATEN.view.default, _ATEN.expand.default, _ATEN._unsafe_view.default}
_REPEATABLE = _RESHAPES | {
    _ATEN.t.default,
    _ATEN.unsqueeze.default,
    _ATEN.squeeze.dim,
    _ATEN.select.int,
    _ATEN.scalar_tensor.default,
}


def tidy(graph: GraphModule) -> None:
    """
    Remove detaches, views to the same shape, double transposes, first powers, and repeated views; results are equal.

    :param graph: changed in place.
    """
    seen: dict[Hashable, Node] = {}
    for node in list(graph.graph.nodes):
        if node.op != "call_function":
            continue
        _sum_without_view(node)
        same = _same_as(node)
        if same is None and node.target in _REPEATABLE:
            same = seen.setdefault((node.target, str(node.args), str(node.kwargs)), node)
        if same is not None and same is not node:
            node.replace_all_uses_with(same)
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _same_as(node: Node) -> Node | None:
    """The earlier node that holds the same values, if the operation does nothing."""
    first: Any = node.args[0] if node.args else None
    if node.target in _NOTHING or (node.target in _RESHAPES and _shape(node) == _shape(first) is not None):
        return first
    if node.target is _ATEN.t.default and getattr(first, "target", None) is _ATEN.t.default:
        return first.args[0]
    if node.target is _ATEN.pow.Tensor_Scalar and node.args[1] == 1:
        return first
    return None


def _sum_without_view(node: Node) -> None:
    """``sum(x, 0, keepdim=True).view(-1)`` as ``sum(x, 0)``: the gradient of a bias."""
    source: Any = node.args[0] if node.args else None
    if node.target is not _ATEN.view.default or getattr(source, "target", None) is not _ATEN.sum.dim_IntList:
        return
    shape = _shape(source)
    if source.args[1:] == ([0], True) and shape is not None and shape[1:] == _shape(node) and len(source.users) == 1:
        node.target = _ATEN.sum.dim_IntList
        node.args = (source.args[0], [0])


def _shape(node: Any) -> tuple[int, ...] | None:
    value = node.meta.get("val") if isinstance(node, Node) else None
    return tuple(value.shape) if isinstance(value, Tensor) else None
