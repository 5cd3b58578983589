"""Networks that read covariates: whose arguments they are, what reaches the layers, which rows are run."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyro_mmvae as mm
from pyro_mmvae.columns import Column
from pyro_mmvae.nn import covariates_of, from_config
from pyro_mmvae.nn.covariates import picked, required_of, union

pytestmark = pytest.mark.usefixtures("float64")

CONTEXT = [Column("age", "normal", loc=50.0, scale=10.0), Column("site", "categorical", ("A", "B", "C"))]
B, WIDTH = 5, 4
ENCODERS: dict[str, Any] = {
    "mlp": lambda **o: (mm.nn.MLPEncoder((2, 3), 2, hidden=(7,), **o), torch.randn(B, 2, 3)),
    "mlp_mask": lambda **o: (mm.nn.MLPEncoder(3, 2, hidden=(), mask=True, **o), torch.randn(B, 3)),
    "conv": lambda **o: (
        mm.nn.ConvEncoder((1, 5, 6), 2, channels=(2,), hidden=(7,), activation=nn.Tanh, **o),
        torch.randn(B, 1, 5, 6),
    ),
    "embedding": lambda **o: (
        mm.nn.EmbeddingEncoder(4, 2, shape=(3,), embedding_dim=2, hidden=(7,), **o),
        torch.randint(4, (B, 3)),
    ),
}
DECODERS: dict[str, Any] = {
    "mlp": lambda **o: mm.nn.MLPDecoder(2, (2, 3), likelihood="normal_learned", hidden=(7,), **o),
    "linear": lambda **o: mm.nn.LinearDecoder(2, 3, **o),
    "conv": lambda **o: mm.nn.ConvDecoder(2, (1, 5, 6), channels=(3,), hidden=(7,), likelihood="bernoulli", **o),
}


def covariates(*batch: int) -> dict[str, Tensor]:
    return {"age": 50 + 10 * torch.randn(*batch), "site": torch.randint(3, batch)}


class Named(nn.Module):
    def forward(self, x: Tensor, age: Tensor, mask: Tensor, *, site: Tensor, dose: Tensor | None = None) -> None: ...


class Declared(nn.Module):
    covariates = ("site", "dose")

    def forward(self, x: Tensor, **covariates: Tensor) -> None: ...


class Bare(nn.Module):
    def forward(self, *inputs: Tensor, **options: Tensor) -> None: ...


class Positional(nn.Module):
    def forward(self, z: Tensor, age: Tensor, /) -> None: ...


def test_covariates_are_the_further_arguments_or_the_attribute() -> None:
    assert covariates_of(Named()) == ("age", "site", "dose") and required_of(Named()) == ("age", "site")
    assert covariates_of(Declared()) == required_of(Declared()) == ("site", "dose")
    for network in (Bare(), nn.Linear(1, 1), nn.Sequential(), mm.nn.MLPEncoder(2, 2), mm.nn.MLPDecoder(2, 2)):
        assert covariates_of(network) == ()
    assert union([Named(), Declared()], "sex") == {"sex": True, "age": True, "site": True, "dose": True}


def test_what_is_no_name_of_a_covariate_is_refused() -> None:
    with pytest.raises(TypeError, match="'age' is positional only"):
        covariates_of(Positional())
    network = Declared()
    network.covariates = "site"  # type: ignore[assignment]
    with pytest.raises(TypeError, match=r"Declared.covariates: expected a tuple of names, got 'site'"):
        covariates_of(network)


def test_covariates_are_picked_from_the_data_and_missed_by_name() -> None:
    x = torch.zeros(2)
    assert picked({"age": True, "dose": False}, {"age": x, "a": x, "dose": None}, "it") == {"age": x}
    with pytest.raises(ValueError, match=r"data\['site'\] is missing: the encoder of 'a' reads"):
        picked({"site": True}, {"age": x}, "the encoder of 'a'")


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_s_layers_read_standardized_numbers_and_one_hot_vectors(name: str) -> None:
    """Beside what a network without context reads of the data."""
    encoder, x = ENCODERS[name](context=CONTEXT)
    c = covariates(B)
    seen: list[Tensor] = []
    first = encoder.net if len(encoder.net) else encoder.head
    first.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    q = encoder(x, **c)
    one_hot = (c["site"].unsqueeze(-1) == torch.arange(3)).double()
    torch.testing.assert_close(seen[0][..., -WIDTH:], torch.cat([(c["age"].unsqueeze(-1) - 50) / 10, one_hot], -1))
    plain, inputs = ENCODERS[name]()[0], []
    (plain.net if len(plain.net) else plain.head).register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    own = plain.state_dict()
    fitting = {k: v for k, v in encoder.state_dict().items() if k in own and v.shape == own[k].shape}
    plain.load_state_dict(fitting, strict=False)  # the layers before the context joins
    plain(x)
    torch.testing.assert_close(seen[0][..., :-WIDTH], inputs[0])  # what it reads of the data is as before
    assert (encoder(x, **covariates(B)).mean - q.mean).abs().min() > 0


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_with_leading_dimensions_is_that_of_its_rows(name: str) -> None:
    encoder, x = ENCODERS[name](context=CONTEXT)
    c, row = covariates(B), slice(3, 4)
    q = encoder(x, **c)
    torch.testing.assert_close(encoder(x[row], **{k: v[row] for k, v in c.items()}).mean, q.mean[row])
    wide = encoder(x.expand(3, *x.shape), **c)  # covariates of the rows alone
    torch.testing.assert_close(wide.mean, q.mean.expand(3, B, 2))


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("lead", [(), (4,), (3, 4)], ids=["rows", "terms", "particles"])
@pytest.mark.parametrize("spread", [False, True], ids=["rows", "spread"])
def test_a_decoder_is_that_of_each_latent_and_row(name: str, lead: tuple[int, ...], spread: bool) -> None:
    """z of shape (K, J, B, D) and covariates of shape (B,), or as wide as z; row by row, and on chosen rows alone."""
    decoder, c = DECODERS[name](context=CONTEXT), covariates(B)
    z = torch.randn(*lead, B, 2)
    x = decoder(torch.randn(B, 2), **c).sample()
    fn = decoder(z, **({k: v.expand(*lead, B) for k, v in c.items()} if spread else c))
    assert fn.batch_shape == (*lead, B)
    rows = [decoder(z[..., i, :].reshape(-1, 2), **{k: v[i] for k, v in c.items()}).log_prob(x[i]) for i in range(B)]
    expected = torch.stack(rows, -1).reshape(*lead, B)
    torch.testing.assert_close(fn.log_prob(x), expected)
    mask = torch.rand(*lead[-1:], B) < 0.6
    torch.testing.assert_close(fn.score(x, mask), torch.where(mask, expected, 0.0))
    single = decoder(z[..., :1, :], **c)  # one latent, many rows
    assert single.batch_shape == (*lead, B)
    torch.testing.assert_close(single.log_prob(x)[..., 0], expected[..., 0])


@pytest.mark.parametrize("name", [*ENCODERS, *(f"decoder_{d}" for d in DECODERS)])
def test_the_context_is_plain_json(name: str) -> None:
    if name in ENCODERS:
        network, x = ENCODERS[name](context=CONTEXT)
    else:
        network, x = DECODERS[name.removeprefix("decoder_")](context=CONTEXT), torch.randn(B, 2)
    again = from_config(json.loads(json.dumps(network.config)))
    again.load_state_dict(network.state_dict())
    c = covariates(B)
    assert torch.equal(again(x, **c).mean, network(x, **c).mean) and again.covariates == ("age", "site")


@pytest.mark.parametrize("make", [ENCODERS["mlp"], lambda **o: (DECODERS["mlp"](**o), torch.zeros(B, 2))])
def test_covariates_and_context_go_together(make: Any) -> None:
    network, x = make()
    with pytest.raises(ValueError, match=r"reads no covariates, got \['age'\]"):
        network(x, age=torch.zeros(B))
    network, x = make(context=CONTEXT)
    with pytest.raises(ValueError, match=r"lacks \['site'\]"):
        network(x, age=torch.zeros(B))
    assert make(context=[])[0].covariates == ()


def test_dense_takes_the_features_of_the_context() -> None:
    decoder, c, z = DECODERS["mlp"](context=CONTEXT), covariates(B), torch.randn(3, B, 2)
    torch.testing.assert_close(decoder.dense(z, decoder.context(**c)).mean, decoder(z, **c).mean)
    with pytest.raises(ValueError, match="dense takes the features of its context"):
        decoder.dense(z)
    with pytest.raises(ValueError, match="dense takes no features"):
        DECODERS["mlp"]().dense(z, z)
