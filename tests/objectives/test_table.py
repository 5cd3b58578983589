"""Selectors, and the table of terms that a batch makes of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_mmvae.objectives import (
    Annealed,
    AnyContained,
    Bernoulli,
    Complement,
    Context,
    Each,
    Fixed,
    Nothing,
    Observed,
    Only,
    Powerset,
    Random,
    Term,
    Terms,
)
from pyro_mmvae.objectives.table import Table

NAMES = ("a", "b", "c")
OBSERVED = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0]]).bool()  # rows observe all, two, one, none
B = len(OBSERVED)


def context(**options: Any) -> Context:
    return Context(OBSERVED, NAMES, **options)


def table(*terms: Term, **options: Any) -> Table:
    return Terms(list(terms), **{k: options.pop(k) for k in ("duplicates",) if k in options}).table(context(**options))


def sets(rows: Tensor) -> list[list[str]]:  # (J, B, M)
    """Members of every set, by row of the table and sample."""
    return [["".join(m for m, x in zip(NAMES, s, strict=True) if x) for s in row] for row in rows.tolist()]


def test_selectors() -> None:
    at = context()
    assert sets(Observed()(at)) == [["abc", "ac", "b", ""]]
    assert sets(Nothing()(at)) == [["", "", "", ""]]
    assert sets(Each()(at)) == [["a"] * B, ["b"] * B, ["c"] * B]
    assert sets(Only(("c", "a"))(at)) == [["ac"] * B]
    assert sets(Fixed.of([["a", "b"], ["c"]], NAMES)(at)) == [["ab"] * B, ["c"] * B]
    assert sets(Powerset(min_size=2)(at)) == [["ab"] * B, ["ac"] * B, ["bc"] * B, ["abc"] * B]
    assert Powerset(max_size=2).count(3) == 6 and Fixed.of([["a"]], NAMES).count(3) == 1
    source = torch.tensor([[[1, 0, 0]] * B]).bool()
    assert sets(Complement()(context(source=source))) == [["bc", "c", "b", ""]]
    assert at.count.tolist() == [3, 2, 1, 1]


def test_selectors_refuse() -> None:
    with pytest.raises(ValueError, match=r"Only: unknown modalities \['d'\]; known are \['a', 'b', 'c'\]"):
        Only(("d",))(context())
    for subset in (["d"], []):
        with pytest.raises(ValueError, match=r"subsets: .* is empty or has unknown names"):
            Fixed.of([subset], NAMES)
    with pytest.raises(ValueError, match="complement of the source"):
        Complement()(context())
    with pytest.raises(ValueError, match="at least 1, got 0"):
        AnyContained(Powerset(), 0)


def test_random_subsets_are_drawn_in_training_only() -> None:
    drawn = Random(2, min_size=1, max_size=2)(context())
    assert drawn.shape == (2, B, 3) and (drawn == drawn[:, :1]).all() and not torch.equal(drawn[0], drawn[1])
    assert Random(2, min_size=1)(context(training=False)).shape == (0, B, 3)
    seen = {sets(Random(1, min_size=1, max_size=2)(context()))[0][0] for _ in range(100)}
    assert seen == {"a", "b", "c", "ab", "ac", "bc"}


def test_bernoulli_subsets_share_a_rate_within_a_sample() -> None:
    """P(kept) = 1/2, P(both kept) = E u^2 = 1/3: more than the 1/4 of independent modalities."""
    many = Context(torch.ones(40_000, 2).bool(), ("a", "b"))
    kept = Bernoulli()(many)[0].double()
    error = 0.5 / 40_000**0.5
    assert ((kept.mean(0) - 0.5).abs() < 4.5 * error).all()
    assert abs(kept.prod(-1).mean() - 1 / 3) < 4.5 * error


def test_any_contained_is_uniform_over_what_a_sample_has() -> None:
    torch.manual_seed(1)
    selector, draws = AnyContained(Powerset(), 3000), 3000
    rows = sets(selector(context()))
    expected = {0: ["a", "b", "c", "ab", "ac", "bc", "abc"], 1: ["a", "c", "ac"], 2: ["b"], 3: [""]}
    for n, members in expected.items():
        column = [row[n] for row in rows]
        assert set(column) == set(members)
        share, error = 1 / len(members), (1 / len(members) / draws) ** 0.5
        assert all(abs(column.count(s) / draws - share) < 4.5 * error for s in members)
    assert len({tuple(row) for row in rows[:50]}) > 5  # samples draw on their own


def test_source_and_target_meet_what_is_observed() -> None:
    found = table(Term(Each(), Observed()))
    assert sets(found.source) == [["a", "a", "", ""], ["b", "", "b", ""], ["c", "c", "", ""]]
    assert sets(found.target) == [["abc", "ac", "", ""], ["abc", "", "b", ""], ["abc", "ac", "", ""]]
    assert found.weight.tolist() == [[1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 0]]
    assert found.structure.draws == (0, 1, 2) and found.structure.one_to_one and found.rescale is None
    own = table(Term(Each(), None))
    assert sets(own.target) == sets(own.source)


def test_contained_leaves_incomplete_subsets_out() -> None:
    pairs = Fixed.of([["a", "b"], ["a", "c"]], NAMES)
    meeting = table(Term(pairs))
    assert sets(meeting.source) == [["ab", "a", "b", ""], ["ac", "ac", "", ""]]
    assert meeting.weight.tolist() == [[1, 1, 1, 0], [1, 1, 0, 0]]
    whole = table(Term(pairs, subsets="contained"))
    assert whole.weight.tolist() == [[1, 0, 0, 0], [1, 1, 0, 0]]


def test_renormalized_weights_keep_their_sum() -> None:
    plain = table(Term(Each(), weight=0.2))
    kept = table(Term(Each(), weight=0.2, renormalize=True))
    torch.testing.assert_close(plain.weight.sum(0), torch.tensor([0.6, 0.4, 0.2, 0.0]).double())
    torch.testing.assert_close(kept.weight.sum(0), torch.tensor([0.6, 0.6, 0.6, 0.0]).double())
    assert (kept.weight[:, 1].tolist()) == pytest.approx([0.3, 0.0, 0.3])
    unequal = table(Term(Each(), weight=lambda at: torch.tensor([[1.0], [2.0], [3.0]]), renormalize=True))
    assert unequal.weight[:, 1].tolist() == pytest.approx([1.5, 0.0, 4.5])
    assert unequal.weight.sum(0).tolist() == pytest.approx([6.0, 6.0, 6.0, 0.0])


def test_duplicates() -> None:
    """Where a sample observes one modality, the joint term and its single term coincide."""
    rows = (Term(Observed(), None), Term(Each(), None))
    assert table(*rows).weight.sum(0).tolist() == [4, 3, 2, 0]
    found = table(*rows, duplicates="drop")
    assert found.weight.tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0]]
    other = table(Term(Observed(), None), Term(Each(), Nothing()), duplicates="drop")
    assert other.weight.sum(0).tolist() == [4, 3, 2, 0]  # another target: no duplicate
    prior = table(Term(Observed(), None), Term(Each(), None, prior=Only(("b",))), duplicates="drop")
    assert prior.weight[:, 2].tolist() == [1, 0, 1, 0]  # nor with another prior


def test_priors_need_something_observed() -> None:
    found = table(Term(), Term(Observed(), Nothing(), prior=Each(), beta=0.3))
    assert found.structure.priors == (1, 2, 3) and sets(found.prior) == sets(table(Term(Each())).source)
    assert found.weight.tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 0]]
    assert found.structure.draws == (0, 0, 0, 0) and len(found.source) == 1  # one source, one draw
    assert sets(found.scored) == [["abc", "ac", "b", ""]]
    assert found.beta[""][:, 0].tolist() == pytest.approx([1.0, 0.3, 0.3, 0.3])


def test_draws_are_shared_by_equal_sources_private_latents_and_gates() -> None:
    shared = table(Term(Each(), Only(("a",))), Term(Each(), Only(("b",))))
    assert len(shared.source) == 3 and shared.structure.draws == (0, 1, 2, 0, 1, 2)
    assert sets(shared.scored) == [["ab", "a", "", ""], ["ab", "", "b", ""], ["ab", "a", "", ""]]
    other = table(Term(Each()), Term(Each(), private="source"))
    assert len(other.source) == 6 and other.structure.own_private
    assert sets(other.private) == [["abc", "ac", "b", ""]] * 3 + sets(other.source[3:])
    gated = table(Term(), Term(detach=frozenset({"decoder"})))
    assert gated.structure.gates == (frozenset(), frozenset({"decoder"}))


def test_weights_by_sample_and_schedules() -> None:
    found = table(Term(Each(), weight=lambda at: 1 / at.count), Term(beta=Annealed(2.0, steps=4)), step=1)
    torch.testing.assert_close(found.weight[:3].sum(0), torch.tensor([1.0, 1.0, 1.0, 0.0]).double())
    assert found.beta[""][:, 0].tolist() == [1.0, 1.0, 1.0, 1.0]
    sites = table(Term(beta={"w": 0.5}), Term(beta=3.0))
    assert {s: b[:, 0].tolist() for s, b in sites.beta.items()} == {"": [1.0, 3.0], "w": [0.5, 3.0]}


def test_rescale_forms() -> None:
    named = table(Term(), Term(rescale={"b": 4.0}), Term(rescale=2.0), Term(rescale=lambda at: 3 / at.count))
    assert named.rescale[:, 1].tolist() == [[1, 1, 1], [1, 4, 1], [2, 2, 2], [1.5, 1.5, 1.5]]
    with pytest.raises(ValueError, match=r"rescale: unknown modalities \['d'\]"):
        table(Term(rescale={"d": 1.0}))


def test_select() -> None:
    rows = (Term(), Term(Each(), weight=2.0, rescale={"a": 3.0}), Term(Observed(), Nothing(), prior=Each(), beta=0.5))
    whole = table(*rows)
    part = whole.select([0, 2])
    assert part.structure.draws == (0, 1, 0, 0, 0) and part.structure.priors == (2, 3, 4)
    kept = [0, 2, 4, 5, 6]
    for name in ("weight", "target", "rescale"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[kept])
    assert torch.equal(part.source, whole.source[[0, 2]]) and torch.equal(part.prior, whole.prior)
    lone = whole.select([3])
    assert lone.prior is None and lone.structure.priors == () and lone.structure.draws == (0,)
    assert sets(lone.target) == [["abc", "ac", "", ""]] and lone.weight.tolist() == [[2, 2, 0, 0]]


def test_random_terms_vanish_in_evaluation() -> None:
    rows = (Term(), Term(Random(2, min_size=1, max_size=2), None))
    assert len(table(*rows).weight) == 3 and len(table(*rows, training=False).weight) == 1


def test_tables_refuse() -> None:
    with pytest.raises(ValueError, match=r"table is empty\. Fix"):
        Terms([])
    with pytest.raises(ValueError, match="duplicates is 'keep' or 'drop', got 'merge'"):
        Terms([Term()], duplicates="merge")  # type: ignore[arg-type]


def test_description() -> None:
    assert Term().describe() == "1.0 T(Observed -> Observed || p), beta 1.0"
    row = Term(Each(), None, prior=Only(("a",)), weight=lambda at: 1.0, beta={"w": 2.0}, detach=frozenset({"z"}))
    assert row.describe() == "w(O) T(Each -> S || q(Only(modalities=('a',)))), beta {w: 2.0}, detach ['z']"


def test_schedules() -> None:
    linear, cosine = Annealed(2.0, 4), Annealed(2.0, 4, "cosine")
    assert [linear.at(t) for t in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert [round(cosine.at(t), 4) for t in range(5)] == [0.2929, 1.0, 1.7071, 2.0, 2.0]
    assert [Annealed(2.0, 4, "cyclical").at(t) for t in range(6)] == [1.0, 2.0, 2.0, 2.0, 1.0, 2.0]
    assert Annealed(0.7).at(0) == 0.7 and Annealed(0.7, 10)(context(step=100)) == 0.7
    with pytest.raises(ValueError, match="steps must be >= 0, got -1"):
        Annealed(1.0, -1)
    with pytest.raises(ValueError, match="'linear', 'cosine' or 'cyclical', got 'step'"):
        Annealed(1.0, 1, "step")  # type: ignore[arg-type]


def test_renormalizing_nothing_gives_nothing() -> None:
    """A weight of 0, or one that is 0 in some rows, is 0 there and not NaN."""
    for weight in (0.0, lambda c: c.observed[:, 0].double()):
        made = table(Term(Each(), Observed(), weight=weight, renormalize=True)).weight
        assert made.isfinite().all()
        assert made[:, 2:].eq(0).all()  # row 2 has no "a", row 3 nothing


def test_terms_that_differ_in_more_than_weight_are_no_duplicates() -> None:
    for other in (Term(beta=2.0), Term(detach=frozenset({"decoder"})), Term(private="source"), Term(rescale=3.0)):
        rows = Terms([Term(), other, Term(weight=5.0)], duplicates="drop").table(context())
        assert rows.weight[:, 0].tolist() == [1, 1, 0], other  # the third repeats the first
