"""The faithful inverse of a story: which sites a head sees.

Test layer: graphs small enough to read off by hand.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

from pyro_mmvae.guides.auto.graph import everything, parents_of, views

Graph = dict[str, frozenset[str]]


def graph(**parents: str) -> Graph:
    """Site -> parents, given as words."""
    return {site: frozenset(own.split()) for site, own in parents.items()}


class TestViews:
    def test_shared_and_private(self) -> None:
        found = views(graph(z="", v="", w="", a="z v", b="z w"), ["z", "v", "w"], ["a", "b"], private={})
        assert found["z"].modalities == ("a", "b")
        assert (found["v"].modalities, found["v"].upstream) == (("a",), ("z",))
        assert (found["w"].modalities, found["w"].upstream) == (("b",), ("z",))

    def test_private_latents_sampled_first_hear_their_own_modality_only_if_declared(self) -> None:
        parents = graph(w="", z="", a="z w", b="z")
        assert views(parents, ["w", "z"], ["a", "b"], private={})["w"].modalities == ("a", "b")
        assert views(parents, ["w", "z"], ["a", "b"], private={"w": "a"})["w"].modalities == ("a",)

    def test_colliders(self) -> None:
        """Two causes of one effect: each informs about the other."""
        found = views(graph(a="", b="", x="a b"), ["a", "b"], ["x"], private={})
        assert found["b"].upstream == ("a",)

    def test_independent_parts(self) -> None:
        found = views(graph(a="", b="", x="a", y="b"), ["a", "b"], ["x", "y"], private={})
        assert (found["b"].upstream, found["b"].modalities) == ((), ("y",))

    def test_hidden_sites_are_ways(self) -> None:
        """c -> z -> x, c -> n with c summed out: n tells of z, but is no descendant."""
        view = views(graph(c="", z="c", x="z", n="c"), ["z"], ["x", "n"], hidden=["c"], private={})["z"]
        assert view.modalities == view.below == ("x", "n")
        assert view.loads == ("x",)

    def test_modalities_that_feed_others_are_ways(self) -> None:
        view = views(graph(z="", x="z", y="x"), ["z"], ["x", "y"], private={})["z"]
        assert view.modalities == view.below == view.loads == ("x", "y")

    def test_sites_outside(self) -> None:
        found = views(graph(mu="", s="", z="mu", x="z s", y="s"), ["z"], ["x", "y"], outer=["mu", "s"], private={})
        assert found["z"].outer == ("mu", "s")
        assert found["z"].modalities == ("x",)

    def test_latents_that_nothing_tells_of(self) -> None:
        view = views(graph(z="", u="", x="z"), ["z", "u"], ["x"], private={})["u"]
        assert view.below == view.modalities == ()


def test_everything_is_everything_before() -> None:
    parents = everything(["mu"], ["z", "w"], ["a", "b"], {"w": "a"})
    assert parents == graph(mu="", z="mu", w="mu z", a="mu z w", b="mu z")


def test_parents_by_provenance() -> None:
    def program() -> None:
        a = pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        b = pyro.sample("b", dist.Normal(a.sum(-1), 1.0))
        pyro.sample("x", dist.Normal(b, 1.0))
        pyro.sample("y", dist.Normal(a, 1.0).to_event(1))

    assert parents_of(program) == graph(a="", b="a", x="b", y="a")
