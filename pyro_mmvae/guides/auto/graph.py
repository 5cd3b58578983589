"""Which latents and modalities the posterior of a latent depends on, read off the story's dependency graph.

Layer: guides.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from pyro.infer.inspect import get_dependencies

__all__ = ["View", "everything", "parents_of", "views"]

Parents = Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class View:
    """
    What the head of one latent sees.

    :ivar modalities: those that its posterior depends on, given the latents before it.
    :ivar upstream: latents before it that its posterior depends on, in the order of sampling.
    :ivar outer: the same of sites outside the plate ``data``.
    :ivar below: modalities that tell anything about it at all: where none of them is observed it keeps its prior.
    :ivar loads: modalities that are its descendants.
    """

    modalities: tuple[str, ...]
    upstream: tuple[str, ...]
    outer: tuple[str, ...]
    below: tuple[str, ...]
    loads: tuple[str, ...]


def parents_of(program: Callable[[], object]) -> dict[str, frozenset[str]]:
    """
    Site -> the sites that its distribution depends on, by ``pyro.infer.inspect.get_dependencies``.

    Example::

        >>> import pyro, pyro.distributions as dist
        >>> def program():
        ...     a = pyro.sample("a", dist.Normal(0.0, 1.0))
        ...     b = pyro.sample("b", dist.Normal(a, 1.0))
        ...     pyro.sample("x", dist.Normal(b, 1.0))
        >>> {site: sorted(own) for site, own in parents_of(program).items()}
        {'a': [], 'b': ['a'], 'x': ['b']}

    :param program: draws every site, modalities too: one modality may feed another.
    """
    found = get_dependencies(program)["prior_dependencies"]
    return {site: frozenset(own) - {site} for site, own in found.items()}  # type: ignore[attr-defined]


def everything(
    outer: Iterable[str],
    latents: Iterable[str],
    modalities: Collection[str],
    private: Mapping[str, str],
) -> dict[str, frozenset[str]]:
    """The graph of a story that cannot be inspected: everything depends on every latent before it."""
    before: list[str] = []
    out: dict[str, frozenset[str]] = {}
    for site in (*outer, *latents):
        out[site] = frozenset(before)
        before.append(site)
    return out | {m: frozenset(s for s in before if private.get(s, m) == m) for m in modalities}


def views(
    parents: Parents,
    latents: Iterable[str],
    modalities: Collection[str],
    *,
    hidden: Collection[str] = (),
    outer: Collection[str] = (),
    private: Mapping[str, str],
) -> dict[str, View]:
    r"""
    The faithful inverse of a story in its own order of sampling [1].

    A latent's head sees what is connected to it in the moral graph by paths through sites that nothing conditions on:
    later latents, and those that are summed out.

    Example::

        >>> parents = {"a": frozenset(), "b": frozenset("a"), "x": frozenset("b")}
        >>> view = views(parents, ["a", "b"], ["x"], private={})
        >>> view["a"].modalities, view["b"].upstream
        (('x',), ('a',))

    :param parents: site -> those its distribution depends on, in the order of sampling.
    :param latents: those that the guide samples, in order.
    :param hidden: latents that are summed out.
    :param outer: sites outside the plate ``data``, sampled before all others.
    :param private: latent -> its modality, the only one it may listen to.

    [1] *Faithful Inversion of Generative Models for Effective Amortized Inference*, Webb et al., NeurIPS 2018,
    arXiv:1712.00287.
    """
    order = list(latents)
    near = _moral(parents)
    feeding = {p for m in modalities for p in parents.get(m, ()) if p in modalities}
    out = {}
    for i, site in enumerate(order):
        free = {*order[i + 1 :], *hidden, *feeding}
        reached = _reached(site, near, free)
        down = _down(site, parents)
        roots = _hidden_above(site, parents, hidden)
        informed = down.union(*(_down(h, parents) for h in roots))
        mine = [private[site]] if site in private else list(modalities)
        out[site] = View(
            tuple(m for m in mine if m in reached),
            tuple(s for s in order[:i] if s in reached),
            tuple(s for s in outer if s in reached),
            tuple(m for m in mine if m in informed),
            tuple(m for m in mine if m in down),
        )
    return out


def _moral(parents: Parents) -> dict[str, set[str]]:
    """Neighbors: parents, children, and the other parents of children."""
    near: dict[str, set[str]] = {site: set() for site in parents}
    for site, own in parents.items():
        family = {site, *own}
        for member in family:
            near.setdefault(member, set()).update(family - {member})
    return near


def _reached(site: str, near: Mapping[str, set[str]], free: Collection[str]) -> set[str]:
    """All sites connected to ``site`` by paths whose inner sites are free."""
    found, todo = {site}, [site]
    while todo:
        for other in near.get(todo.pop(), ()):
            if other not in found:
                found.add(other)
                todo += [other] if other in free else []
    return found - {site}


def _down(site: str, parents: Parents) -> set[str]:
    """All descendants of a site."""
    found: set[str] = set()
    todo = [site]
    while todo:
        here = todo.pop()
        children = {s for s, own in parents.items() if here in own} - found
        found |= children
        todo += children
    return found


def _hidden_above(site: str, parents: Parents, hidden: Collection[str]) -> set[str]:
    """Summed-out ancestors, by ways through summed-out sites alone."""
    found: set[str] = set()
    todo = [site]
    while todo:
        above = {p for p in parents.get(todo.pop(), ()) if p in hidden} - found
        found |= above
        todo += above
    return found
