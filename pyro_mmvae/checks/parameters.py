"""Laws of parameters: gradients finite, every one reached, every one registered where it is looked for.

Layer: checks.
"""

from __future__ import annotations

from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor, nn

from pyro_mmvae.checks.context import Context
from pyro_mmvae.checks.report import Finding, broken, holds, note, skipped
from pyro_mmvae.checks.runs import ProgramError, blamed, copies
from pyro_mmvae.checks.state import networks_of
from pyro_mmvae.distributions import stand_ins
from pyro_mmvae.handlers.registration import Registered

__all__ = ["gradients_finite", "parameters_reached", "parameters_registered"]


def gradients_finite(context: Context) -> Finding:
    """Under every mask the gradient of every parameter is finite."""
    for tried in context.tried:
        for name, g in tried.gradients.items():
            if g is not None and not bool(g.isfinite().all()):
                kind = "NaN" if bool(g.isnan().any()) else "infinite"
                message = f"the gradient is {kind} when {tried.label} is observed"
                fix = "guard what is not differentiable there (sqrt and norm at 0, log of 0, 0 / 0): add a small "
                fix += "number inside, or torch.where on its argument, not on its result."
                return broken(message, fix, program=_owner(name), parameter=name)
        if tried.error is not None and tried.run is not None:
            error = tried.error
            return broken(f"when {tried.label} is observed, the {error}", "let the loss be differentiated.",
                          program=error.program, site=error.site)  # fmt: skip
    return holds() if any(tried.gradients for tried in context.tried) else skipped("there are no parameters")


def _owner(name: str) -> str | None:
    owner = name.split(".")[0]
    return owner if owner in ("model", "guide", "objective") else None


def parameters_reached(context: Context) -> Finding:
    """Every parameter gets a gradient under some mask."""
    if not context.parameters:
        return skipped("there are no parameters")
    found = [tried.gradients for tried in context.tried if tried.gradients]
    if not found:
        return skipped("the pair runs under no mask")
    never = [name for name in context.parameters if all(g.get(name) is None for g in found)]
    zero = [name for name in context.parameters if name not in never and not any(_moves(g[name]) for g in found)]
    unseen = [m for m in context.names if not context.seen_anywhere(m)]
    if unseen and (never or zero):
        return note(f"no gradient for {(never or zero)[:3]}; the rows never observe {unseen}", "check other rows.")
    if never:
        more = f", nor {len(never) - 1} more, {never[1:4]}" if len(never) > 1 else ""
        message = f"no gradient reaches it under any of {len(found)} masks{more}"
        fix = "use it in the program, drop it, or requires_grad_(False); look for detach(), .data, no_grad."
        return broken(message, fix, program=_owner(never[0]), parameter=never[0])
    if zero:
        message = f"the gradient is exactly zero under all masks, here and in {len(zero) - 1} more"
        return note(message, "fine right after zero initialization; else look for saturation.", parameter=zero[0])
    return holds(f"{len(context.parameters)} parameters")


def _moves(g: Tensor | None) -> bool:
    return g is not None and bool((g != 0).any())


class _Seen(Messenger):
    """What programs register: names, leaves, and names under which the store holds another tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.leaves: set[int] = set()
        self.clashes: list[str] = []

    def _pyro_post_param(self, msg: Message) -> None:
        value: Any = msg["value"]
        leaf = value.unconstrained() if hasattr(value, "unconstrained") else value
        self.leaves.add(id(leaf))
        given = [x for x in msg["args"] if isinstance(x, nn.Parameter)]
        if given and given[0] is not leaf:
            self.clashes.append(str(msg["name"]))


def parameters_registered(context: Context) -> Finding:
    """What the loss depends on is in a module given or in Pyro's store, each under a name of its own."""
    seen = _Seen()
    try:
        with seen, stand_ins():
            for which, run in (("guide", context.guide), ("model", context.model)):
                with blamed(which):
                    run(copies(context.data), copies(context.masks))
    except ProgramError as error:
        if "param store" in str(error.error):
            return broken(str(error.error).split("Fix:")[0].strip(), "pyro.clear_param_store().", program="model")
        raise
    if seen.clashes:
        message = f"the param store holds another tensor under {seen.clashes[0]!r}: two networks share a name"
        fix = "a name of its own for each pyro.module, or pyro.clear_param_store() after making new networks."
        return broken(message, fix, parameter=seen.clashes[0])
    whole = next((t.total for t in context.tried if t.total is not None and t.total.requires_grad), None)
    if whole is None:
        return skipped("the densities depend on no parameter")
    known = {id(p) for p in context.parameters.values()}
    leaves = [leaf for leaf in _leaves(whole) if leaf.requires_grad]
    hidden = [leaf for leaf in leaves if id(leaf) not in known]
    if hidden:
        (_, program, name), first = min(((_name_of(context, x), x) for x in hidden), key=lambda named: named[0])
        more = f" and {len(hidden) - 1} more" if len(hidden) > 1 else ""
        message = f"the loss depends on it{more}, but it is in no module given and not in Pyro's store: it would be "
        message += "neither trained nor saved"
        fix = "an attribute of the nn.Module that is the program, or pyro.module(name, network) inside it."
        return broken(message, fix, program=program, parameter=name, shape=tuple(first.shape))
    quiet = [name for name, p in context.parameters.items() if id(p) not in seen.leaves and _reaches(p, leaves)]
    if quiet and not _registers(context, quiet[0]):
        message = f"stock SVI does not see it{f' nor {len(quiet) - 1} more' if len(quiet) > 1 else ''}; fit and torch "
        message += "optimizers on .parameters() do"
        return note(message, "pyro.module(name, self) in forward, or PyroModule.", parameter=quiet[0])
    return holds()


def _reaches(p: Tensor, leaves: list[Tensor]) -> bool:
    return any(leaf is p for leaf in leaves)


def _registers(context: Context, name: str) -> bool:
    """Whether the program registers its parameters by itself."""
    program = context.model if name.startswith("model") else context.guide
    return isinstance(getattr(program, "registered", None), Registered)


def _leaves(total: Tensor) -> list[Tensor]:
    """The leaves that a result depends on."""
    out, todo, done = [], [total.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in done:
            continue
        done.add(node)
        if hasattr(node, "variable"):
            out.append(node.variable)
        todo += [parent for parent, _ in node.next_functions]
    return out


def _name_of(context: Context, leaf: Tensor) -> tuple[int, str, str]:
    """Its place among the hidden parameters, the program that holds it, and its name there."""
    place = 0
    for program in ("guide", "model"):
        held: Any = getattr(context, program)
        inner = getattr(held, "forward", None) if isinstance(held, nn.Module) else held
        for root, network in {**networks_of(inner), **_lists(held)}.items():
            for name, p in network.named_parameters():
                place += 1
                if p is leaf:
                    return place, program, f"{root}.{name}" if root else name
    return place, "model", "of no name"


def _lists(program: object) -> dict[str, nn.Module]:
    """Networks that a module keeps in plain lists and dicts, where torch does not see them."""
    out = {}
    for name, value in getattr(program, "__dict__", {}).items():
        pairs = value.items() if type(value) is dict else enumerate(value) if isinstance(value, list | tuple) else ()
        if not name.startswith("_"):
            out.update({f"{name}[{k!r}]": item for k, item in pairs if isinstance(item, nn.Module)})
    return out

