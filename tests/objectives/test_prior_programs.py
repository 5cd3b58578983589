"""Priors that are programs, empty sources, required modalities, and random sets drawn once per table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI
from pyro.optim import Adam
from torch import Tensor, nn

import pyro_mmvae as mm
from pyro_mmvae.guides import Refused
from pyro_mmvae.objectives import (
    AnyContained,
    Bernoulli,
    Complement,
    Context,
    Each,
    Nothing,
    Observed,
    Only,
    PosteriorOf,
    Powerset,
    Random,
    Term,
    Terms,
)
from tests.conformance.evaluate import gradients, value
from tests.conformance.problems import make_problem
from tests.objectives.naive import EXACT, Networks, Row, kl, pool

pytestmark = pytest.mark.usefixtures("float64")

NAMES = ("a", "b", "c")
EXPONENTS = torch.tensor([[0.9, 0.3], [0.5, 0.8], [0.2, 0.6]], dtype=torch.float64)
PAIR = Only(("a", "b"))


@pytest.fixture
def nets(float64: None) -> Networks:
    return Networks(make_problem())


def product(nets: Networks) -> mm.MultimodalVAE:
    """A guide that multiplies experts, without the prior."""
    return nets.vae(mm.MVAE, unimodal=False, prior_expert=False)


def table(vae: mm.MultimodalVAE, nets: Networks, *terms: Term, **options: Any) -> Tensor:  # shape: (B,)
    """The value of a table at the problem's noise."""
    objective = mm.ELBO(Terms(terms, **options))
    return value(vae, nets.p.data, nets.p.obs_mask, nets.eps, objective=objective)


def over_rows(nets: Networks, formula: Callable[[Row], Tensor | float]) -> Tensor:  # shape: (B,)
    """A formula in every row that observes something."""
    return torch.stack([torch.as_tensor(formula(r) if r.names else 0.0).reshape(()) for r in nets.rows()])


def agree(vae: nn.Module, found: Tensor, wanted: Tensor) -> None:
    """Equal values and gradients of everything in a module."""
    torch.testing.assert_close(found, wanted, **EXACT)
    one, other = gradients(vae, found.sum()), gradients(vae, wanted.sum())
    for name, g in one.items():
        torch.testing.assert_close(g, other[name], rtol=1e-9, atol=1e-9)


def generalized(vae: mm.MultimodalVAE) -> tuple[Refused, nn.Parameter]:
    """The guide's experts in a weighted product, and its logits."""
    rule = mm.fusion.GeneralizedProduct(3, 2)
    with torch.no_grad():
        rule.logits.copy_(EXPONENTS)
    return Refused(vae.guide, rule), rule.logits


def weighted(row: Row, names: tuple[str, ...], logits: Tensor) -> Any:
    """The same product by hand."""
    powers = {m: logits[NAMES.index(m)].exp() for m in names}
    total = sum(powers.values())
    return row.product(names, {m: w / total for m, w in powers.items()})


def test_a_refused_guide_is_the_prior(nets: Networks) -> None:
    """T(O -> O || r), r the guide's experts by another rule given all, or given the pair: gradients reach both."""
    vae = product(nets)
    program, logits = generalized(vae)
    both = nn.ModuleList([vae, program])
    found = table(vae, nets, Term(prior=PosteriorOf(program), beta=1.7))

    def everything(row: Row) -> Tensor:
        q = row.product(row.names)
        return row.score(q) - 1.7 * kl(q, weighted(row, row.names, logits))

    agree(both, found, over_rows(nets, everything))

    def pair(row: Row) -> Tensor | float:
        given = tuple(m for m in row.names if m in "ab")
        q = row.product(row.names)
        return row.score(q) - kl(q, weighted(row, given, logits)) if given else 0.0

    agree(both, table(vae, nets, Term(prior=PosteriorOf(program, PAIR))), over_rows(nets, pair))
    grad = gradients(program, found.sum())
    assert all(bool((g != 0).any()) for g in grad.values())


def test_priors_of_several_programs_and_of_the_guide_in_one_table(nets: Networks) -> None:
    vae = product(nets)
    program, logits = generalized(vae)
    geometric = Refused(vae.guide, mm.fusion.GeometricMean())
    terms = [
        Term(Each(), Nothing(), prior=PosteriorOf(program), weight=0.3),
        Term(Observed(), Nothing(), prior=Each(), weight=0.7),
        Term(Each(), Nothing(), prior=PosteriorOf(geometric), weight=1.1),
        Term(Observed(), Nothing(), prior=PosteriorOf(program, PAIR), weight=1.3),
        Term(),
    ]

    def by_hand(row: Row) -> Tensor:
        joint, experts = row.product(row.names), [row.expert(m) for m in row.names]
        equal = 1 / (len(row.names) + 1)
        mean = pool([(equal, r) for r in (row.prior, *experts)])
        given = tuple(m for m in row.names if m in "ab")
        total = row.score(joint) - kl(joint, row.prior)
        total = total - sum(0.3 * kl(q, weighted(row, row.names, logits)) + 1.1 * kl(q, mean) for q in experts)
        total = total - sum(0.7 * kl(joint, r) for r in experts)
        return total - (1.3 * kl(joint, weighted(row, given, logits)) if given else 0.0)

    agree(nn.ModuleList([vae, program]), table(vae, nets, *terms), over_rows(nets, by_hand))


def test_gates_of_a_prior_that_is_a_program(nets: Networks) -> None:
    vae = product(nets)
    program, _ = generalized(vae)
    both = nn.ModuleList([vae, program])

    def pull(*gates: str) -> dict[str, Tensor]:
        term = Term(Observed(), Nothing(), prior=PosteriorOf(program), detach=frozenset(gates))  # type: ignore[arg-type]
        return gradients(both, table(vae, nets, term).sum())

    free, first, second = pull(), pull("prior"), pull("posterior")
    assert all((g == 0).all() for g in pull("posterior", "prior").values())
    assert all((g == 0).all() for name, g in first.items() if "logits" in name)
    assert any((g != 0).any() for name, g in second.items() if "logits" in name)
    for name, g in free.items():
        torch.testing.assert_close(first[name] + second[name], g, rtol=1e-9, atol=1e-9)


def test_equal_terms_with_other_programs_are_no_duplicates(nets: Networks) -> None:
    vae = product(nets)
    one, other = (PosteriorOf(Refused(vae.guide, rule)) for rule in (mm.fusion.GeometricMean(), mm.fusion.Product()))
    terms = [Term(Observed(), Nothing(), prior=prior) for prior in (one, other, Observed())]
    kept, dropped = (table(vae, nets, *terms, duplicates=d) for d in ("keep", "drop"))
    torch.testing.assert_close(dropped, kept, **EXACT)
    twice = table(vae, nets, terms[0], terms[0], duplicates="drop")
    torch.testing.assert_close(twice, table(vae, nets, terms[0]), **EXACT)


class PriorNetwork(nn.Module):
    """A program by hand, with the guide's signature: z given what it is told to see of "a"; plain masks only."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, data: Any = None, obs_mask: Any = None, n: int | None = None) -> None:
        x = torch.where(obs_mask["a"].reshape(-1, 1), data["a"], 0.0)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.network(x))


@pytest.mark.parametrize("source", [Observed(), Each()], ids=["one row", "several rows"])
def test_a_program_by_hand_is_called_with_plain_masks(source: Any, nets: Networks) -> None:
    vae = product(nets)
    prior = PosteriorOf(PriorNetwork(nets.encoders["a"]), Only(("a",)))

    def by_hand(row: Row) -> Tensor | float:
        posteriors = [row.product(row.names)] if isinstance(source, Observed) else [row.expert(m) for m in row.names]
        return -sum(kl(q, row.expert("a")) for q in posteriors) if "a" in row.names else 0.0

    agree(vae, table(vae, nets, Term(source, Nothing(), prior=prior)), over_rows(nets, by_hand))


@pytest.mark.param_store
def test_stock_svi_trains_the_parameters_of_a_prior(nets: Networks) -> None:
    vae = product(nets)
    program, logits = generalized(vae)
    objective = mm.ELBO(Terms([Term(), Term(Observed(), Nothing(), prior=PosteriorOf(program))]))
    assert any(p is logits for p in objective.parameters())
    SVI(vae.model, vae.guide, Adam({"lr": 0.01}), objective).step(nets.p.data, nets.p.obs_mask)
    assert not torch.equal(logits, EXPONENTS)


# Empty sources.


def test_an_empty_source_is_the_prior_where_something_is_observed(nets: Networks) -> None:
    """T(nothing -> nothing || f) = -KL(p || f), T(nothing -> O || p) = E_p log p(x_O | z); left out without `empty`."""
    vae = product(nets)
    program, logits = generalized(vae)
    against = Term(Nothing(), Nothing(), prior=PosteriorOf(program), empty=True)
    scored = Term(Nothing(), Observed(), empty=True, weight=0.5)
    backwards = Term(Observed(), Nothing(), prior=Nothing(), empty=True, weight=0.25)

    def by_hand(row: Row) -> Tensor:
        plain = row.score(row.prior) * 0.5 - kl(row.prior, weighted(row, row.names, logits))
        return plain - 0.25 * kl(row.product(row.names), row.prior)

    both = nn.ModuleList([vae, program])
    agree(both, table(vae, nets, against, scored, backwards), over_rows(nets, by_hand))
    left = table(vae, nets, Term(Nothing(), Observed()), Term(Observed(), Nothing(), prior=Nothing()), Term(weight=0.0))
    assert (left == 0).all()


# Tables, on the host.

OBSERVED = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0]]).bool()


def context() -> Context:
    return Context(OBSERVED.repeat(8, 1), NAMES)


def test_a_required_modality() -> None:
    with pytest.raises(ValueError, match=r"'a'.*missing in 1 of 4 samples.*Fix: leave such samples out"):
        Only(("a",), required=True)(Context(OBSERVED, NAMES))
    complete = Context(OBSERVED[[0, 1, 3]], NAMES)  # a sample with nothing at all is none
    assert torch.equal(Only(("a",), required=True)(complete), Only(("a",))(complete))
    with pytest.raises(ValueError, match="missing in 2 of 4"):
        Only(("a", "b"), required=True)(Context(OBSERVED, NAMES))


@pytest.mark.parametrize("draw", [Bernoulli(), Random(2, min_size=1, max_size=2), AnyContained(Powerset(), 3)])
def test_term_and_prior_see_the_same_random_subset(draw: Any) -> None:
    at = context()
    made = Terms([Term(draw), Term(Observed(), draw, prior=draw), Term(draw, Complement(), prior=Complement())]).table(
        at
    )
    rows = len(made.source) - 1  # the draws, and all that is observed
    drawn = made.source[:rows]
    assert rows == getattr(draw, "k", 1)
    assert torch.equal(made.prior[:rows], drawn)  # type: ignore[index]
    assert torch.equal(made.target[rows : 2 * rows], drawn & (made.weight[rows : 2 * rows] != 0).unsqueeze(-1))
    rest = at.observed & ~drawn
    assert torch.equal(made.prior[rows:], rest)  # type: ignore[index]
    other = Terms([Term(draw)]).table(context())
    assert not torch.equal(other.source, drawn)  # the next table draws anew


def test_the_complement_of_a_drawn_set() -> None:
    """VAEAC's and the masked bound's: S drawn, O without S scored or conditioned on, in any order of the terms."""
    draw, at = Bernoulli(), context()
    rest = Complement(of=draw)
    made = Terms([Term(rest, draw), Term(draw, rest, prior=rest)]).table(at)
    given, hidden = made.source[1], made.source[0]
    assert torch.equal(given | hidden, at.observed)
    assert not (given & hidden).any()
    assert torch.equal(made.prior[0], hidden)  # type: ignore[index]
    valid = (made.weight != 0).unsqueeze(-1)
    assert torch.equal(made.target, torch.stack([given, hidden]) & valid)
    assert torch.equal(valid[0, :, 0], hidden.any(-1))
    assert rest.random
    assert not Complement().random
    assert PosteriorOf(nn.Identity(), rest).random
