"""Encoders of sets of modalities: their formulas, and the laws of sets.

Test layer.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyro_mmvae.distributions import Mixture, map_params
from pyro_mmvae.nn import AttentionEncoder, SumPoolingEncoder, from_config

pytestmark = pytest.mark.usefixtures("float64")

SHAPES: dict[str, Any] = {"image": (2, 3), "rna.x": 4, "class": ()}
EXACT = {"rtol": 1e-12, "atol": 1e-12}  # small networks in float64, sums in another order


def make(kind: type, shapes: dict[str, Any] = SHAPES, **options: Any) -> Any:
    options = {"hidden": (8,), "features": (7, 6), "num_classes": {"class": 6}} | options
    heads = {"num_heads": 2} if kind is AttentionEncoder else {}
    return kind(shapes, 3, **(heads | options))


KINDS = pytest.mark.parametrize(
    "build",
    [
        lambda **options: make(SumPoolingEncoder, **options),
        lambda **options: make(AttentionEncoder, **options),
        lambda **options: make(SumPoolingEncoder, **({"num_components": 4} | options)),
        lambda **options: make(AttentionEncoder, **({"num_components": 4} | options)),
    ],
    ids=["sum", "attention", "sum, mixture", "attention, mixture"],
)
Build = Callable[..., Any]


def data(rows: int = 5) -> dict[str, Tensor]:
    return {"image": torch.randn(rows, 2, 3), "rna.x": torch.randn(rows, 4), "class": torch.arange(rows) % 6}


def parameters(q: Any) -> list[Tensor]:
    """All parameters, the batch dimensions first."""
    if not isinstance(q, Mixture):
        return [q.base_dist.loc, q.base_dist.scale]
    normal = q.components.base_dist
    return [p.movedim(0, -1) for p in (q.log_weights, normal.loc, normal.scale)]


def assert_same(q: Any, r: Any, exactly: bool = False) -> None:
    for a, b in zip(parameters(q), parameters(r), strict=True):
        torch.testing.assert_close(a, b, **({"rtol": 0, "atol": 0} if exactly else EXACT))


def differ(q: Any, r: Any) -> bool:
    return not torch.allclose(parameters(q)[0], parameters(r)[0])


def copied(target: nn.Module, source: nn.Module) -> nn.Module:
    """``target`` with those parameters of ``source`` that it has, by name."""
    own = source.state_dict()
    target.load_state_dict({name: own[name] for name in target.state_dict()})
    return target


def naive_block(block: Any, tokens: Tensor) -> Tensor:  # shape of both: (M, F)
    """One block on one set, head by head and pair by pair."""
    width = tokens.shape[-1]
    size = width // block.num_heads
    q, k, v = (block.qkv(block.norm_attention(tokens))[:, i * width : (i + 1) * width] for i in range(3))
    rows = []
    for i in range(len(tokens)):
        heads = []
        for h in range(block.num_heads):
            own = slice(h * size, (h + 1) * size)
            score = torch.stack([(q[i, own] * k[j, own]).sum() / size**0.5 for j in range(len(tokens))])
            share = score.exp() / score.exp().sum()
            heads.append(sum(share[j] * v[j, own] for j in range(len(tokens))))
        rows.append(torch.cat(heads))
    tokens = tokens + block.out(torch.stack(rows))
    return tokens + block.mlp(block.norm_mlp(tokens))


@pytest.mark.parametrize("kind", [SumPoolingEncoder, AttentionEncoder])
def test_formula(kind: type) -> None:
    enc, x = make(kind), data(8)
    mask = torch.tensor([[bool(n & 4), bool(n & 2), bool(n & 1)] for n in range(8)])
    inputs = {"image": x["image"].reshape(8, -1), "rna.x": x["rna.x"], "class": torch.eye(6)[x["class"]]}
    found = enc(x, mask)
    for n in range(8):
        names = [m for m, shown in zip(SHAPES, mask[n], strict=True) if shown]
        tokens = [enc.maps[m](enc.networks[m].net(inputs[m][n])) for m in names]
        if kind is AttentionEncoder and tokens:
            together = torch.stack(tokens)
            for block in enc.blocks:
                together = naive_block(block, together)
            tokens = list(together)
        pooled = torch.stack(tokens).sum(0) if tokens else torch.zeros(6)
        loc, log_scale = enc.expert.linear(enc.net(pooled)).chunk(2, -1)
        torch.testing.assert_close(found.base_dist.loc[n], loc, **EXACT)
        torch.testing.assert_close(found.base_dist.scale[n], log_scale.exp(), **EXACT)


@KINDS
def test_features_once_and_the_head_for_many_sets(build: Build) -> None:
    enc, x = build(), data()
    features = enc.features(x)
    assert features.shape == (5, 3, 6)
    masks = torch.rand(4, 1, 5, 3) < 0.5
    q = enc.head(features, masks)
    assert q.batch_shape == (4, 1, 5)
    assert q.event_shape == (3,)
    for j in range(4):
        for together, alone in zip(parameters(q), parameters(enc(x, masks[j, 0])), strict=True):
            torch.testing.assert_close(together[j, 0], alone, **EXACT)


@KINDS
def test_the_order_of_modalities_does_not_matter(build: Build) -> None:
    enc, x, mask = build(), data(), torch.rand(5, 3) < 0.6
    order = [2, 0, 1]
    names = tuple(SHAPES)
    turned = copied(build(shapes={names[i]: SHAPES[names[i]] for i in order}), enc)
    assert turned.modalities == ("class", "image", "rna.x")
    assert_same(turned(x, mask[:, order]), enc(x, mask))


@KINDS
def test_a_set_is_what_an_encoder_of_that_set_alone_says(build: Build) -> None:
    enc, x = build(), data()
    small = copied(build(shapes={"image": (2, 3), "class": ()}), enc)
    shown = torch.tensor([True, False, True]).expand(5, 3)
    assert_same(enc(x, shown), small(x, torch.ones(5, 2, dtype=torch.bool)))


@KINDS
def test_what_is_outside_the_set_never_matters_and_gets_no_gradient(build: Build) -> None:
    enc, x = build(), data()
    mask = torch.tensor([True, False, False]).expand(5, 3)
    base = enc(x, mask)
    for other in (x | {"rna.x": torch.full((5, 4), 1e30), "class": 5 - x["class"]}, {"image": x["image"]}):
        assert_same(enc(other, mask), base, exactly=True)
    assert differ(enc(x, ~mask), base)
    sum(p.sum() for p in parameters(base)).backward()
    for name, p in (*enc.networks.named_parameters(), *enc.maps.named_parameters()):
        assert (p.grad is not None and bool((p.grad != 0).any())) == name.startswith("m_image")


@KINDS
def test_features_outside_the_set_may_be_anything(build: Build) -> None:
    enc, mask = build(), torch.rand(5, 3) < 0.5
    features = enc.features(data()).detach()
    for value in (torch.nan, torch.inf):
        leaf = torch.where(mask.unsqueeze(-1), features, value).requires_grad_()
        q = enc.head(leaf, mask)
        assert_same(q, enc.head(features, mask), exactly=True)
        sum(p.sum() for p in parameters(q)).backward()
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
        assert (leaf.grad[~mask] == 0).all()


def test_masked_tokens_have_no_influence_in_the_blocks() -> None:
    enc = make(AttentionEncoder)
    mask = torch.rand(7, 5, 3) < 0.5
    tokens = torch.randn(7, 5, 3, 6)
    other = torch.where(mask.unsqueeze(-1), tokens, 100 * torch.randn_like(tokens))
    assert torch.equal(enc.pool(tokens, mask), enc.pool(other, mask))
    leaf = tokens.clone().requires_grad_()
    enc.pool(leaf, mask).square().sum().backward()
    assert leaf.grad is not None
    assert (leaf.grad[~mask] == 0).all()
    assert (leaf.grad[mask] != 0).any(-1).all()


def test_attention_is_more_than_a_sum() -> None:
    """What one modality adds depends on the others; without blocks it does not."""
    tokens = torch.randn(1, 3, 6)
    sets = {s: torch.tensor([[c in s for c in "abc"]]) for s in ("a", "b", "ab")}
    for blocks, additive in ((0, True), (2, False)):
        enc = make(AttentionEncoder, num_blocks=blocks)
        a, b, both = (enc.pool(tokens, mask) for mask in sets.values())
        assert torch.allclose(a + b, both) == additive


@KINDS
def test_rows_are_independent(build: Build) -> None:
    enc, x, mask = build(), data(), torch.rand(5, 3) < 0.5
    together = parameters(enc(x, mask))
    for n in range(5):
        alone = enc({m: v[n : n + 1] for m, v in x.items()}, mask[n : n + 1])
        for a, b in zip(together, parameters(alone), strict=True):
            torch.testing.assert_close(a[n : n + 1], b, **EXACT)


@KINDS
def test_the_empty_set_is_finite_with_finite_gradients(build: Build) -> None:
    enc, x = build(), data()
    mask = torch.ones(5, 3, dtype=torch.bool)
    mask[2] = False
    q = enc(x, mask)
    assert all(p.isfinite().all() for p in parameters(q))
    q.log_prob(torch.zeros(5, 3)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in enc.parameters())


def test_the_embedding_tells_a_modality_from_nothing_and_from_the_others() -> None:
    enc = make(SumPoolingEncoder, shapes={"a": 2, "b": 2}, num_classes=None)
    copied(enc.networks["b"], enc.networks["a"])
    zero = {m: torch.zeros(1, 2) for m in ("a", "b")}
    a, b, none = (enc(zero, torch.tensor([shown])) for shown in ([True, False], [False, True], [False, False]))
    assert differ(a, b)
    assert differ(a, none)


def test_mixture_head() -> None:
    enc, x, mask = make(SumPoolingEncoder, num_components=4), data(), torch.rand(2, 5, 3) < 0.5
    q = enc(x, mask)
    pooled = torch.where(mask.unsqueeze(-1), enc.features(x), 0.0).sum(-2)
    h = enc.net(pooled)
    weights = enc.expert.logits(h).softmax(-1)
    loc, log_scale = (p.reshape(2, 5, 4, 3) for p in enc.expert.normal.linear(h).chunk(2, -1))
    z = torch.randn(2, 5, 3)
    density = torch.zeros(2, 5)
    for k in range(4):
        normal = torch.distributions.Normal(loc[..., k, :], log_scale[..., k, :].exp())
        density = density + weights[..., k] * normal.log_prob(z).sum(-1).exp()
    torch.testing.assert_close(q.log_prob(z), density.log(), **EXACT)
    torch.testing.assert_close(q.log_weights.exp().sum(0), torch.ones(2, 5), **EXACT)
    assert q.log_weights.requires_grad
    assert q.rsample().shape == (2, 5, 3)
    rows = map_params(q, lambda p, constraint, k: p.detach())
    torch.testing.assert_close(rows.log_prob(z), q.log_prob(z), **EXACT)


def test_scales_stay_in_range() -> None:
    for count in (1, 3):
        enc = make(SumPoolingEncoder, num_components=count).float()
        x = {m: v.float() * 1e6 for m, v in data().items() if m != "class"}
        q = enc(x, torch.tensor([True, True, False]).expand(5, 3))
        scale = parameters(q)[-1]
        assert scale.dtype == torch.float32
        assert ((scale > 0) & scale.square().reciprocal().isfinite()).all()


def test_masks_of_features() -> None:
    enc, x = make(SumPoolingEncoder, mask=True), data()
    shown = torch.ones(5, 3, dtype=torch.bool)
    seen = {"image": torch.rand(5, 2, 3) < 0.5, "rna.x": torch.ones(5, 1, dtype=torch.bool)}
    base = enc.features(x, seen)
    other = x | {"image": torch.where(seen["image"], x["image"], 7.0)}
    assert torch.equal(enc.features(other, seen), base)
    assert not torch.allclose(enc.features(other), enc.features(x))
    zeros = x | {"image": torch.where(seen["image"], x["image"], 0.0)}
    assert not torch.allclose(enc.features(zeros)[:, 0], base[:, 0])  # an unobserved feature is no zero
    assert torch.equal(enc.features(x, {"rna.x": torch.ones(5, dtype=torch.bool)}), enc.features(x))
    assert_same(enc.head(enc.features(x), shown), enc(x, shown), exactly=True)
    tokens = make(SumPoolingEncoder, shapes={"class": 4}, mask=True)
    words, part = torch.arange(8).reshape(2, 4) % 6, torch.tensor([[True, True, False, False]])
    found = tokens.features({"class": words}, {"class": part.expand(2, 4)})
    changed = torch.where(part, words, 0)
    assert torch.equal(tokens.features({"class": changed}, {"class": part.expand(2, 4)}), found)
    assert not torch.allclose(tokens.features({"class": changed}), found)


class _OfFeatures(nn.Module):
    """A network of a user that looks at the mask."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 6)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.linear(torch.cat([(x * mask).flatten(1), mask.flatten(1).to(x.dtype)], -1))


def test_own_networks() -> None:
    own = _OfFeatures()
    enc, x = make(SumPoolingEncoder, networks={"image": own}), data()
    assert enc.networks["image"] is own
    seen = torch.rand(5, 2, 3) < 0.5
    torch.testing.assert_close(enc.features(x, {"image": seen})[:, 0], enc.maps["image"](own(x["image"], seen)))
    torch.testing.assert_close(
        enc.features(x)[:, 0], enc.maps["image"](own(x["image"], torch.ones_like(seen)))
    )  # without masks everything is observed
    with pytest.raises(ValueError, match=r"image: expected features of shape \(5, 6\), got \(5, 2, 3\)"):
        make(SumPoolingEncoder, networks={"image": nn.Identity()}).features(x)
    with pytest.raises(ValueError, match=r"networks\.image was"):
        from_config(enc.config)


@KINDS
def test_config_and_state_rebuild_the_same_function(build: Build) -> None:
    enc = build(mask=True)
    again = from_config(json.loads(json.dumps(enc.config)))
    again.load_state_dict(enc.state_dict())
    x, mask = data(), torch.rand(5, 3) < 0.5
    assert type(again) is type(enc)
    assert again.modalities == tuple(SHAPES)
    assert_same(again(x, mask), enc(x, mask), exactly=True)


def test_other_default_device_and_dtype() -> None:
    enc, x = make(AttentionEncoder, num_components=2).float(), {m: v.float() for m, v in data().items()}
    mask = torch.ones(5, 3, dtype=torch.bool)
    with torch.device("meta"):
        q = enc(x | {"class": x["class"].long()}, mask)
    assert all(p.device.type == "cpu" and p.dtype == torch.float32 for p in parameters(q))


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"SumPoolingEncoder: .* unknown: \['text'\]"):
        make(SumPoolingEncoder, num_classes={"text": 3})
    for shapes, features in (({}, (4,)), (SHAPES, ())):
        with pytest.raises(ValueError, match="must not be empty"):
            AttentionEncoder(shapes, 3, features=features)
    with pytest.raises(ValueError, match="4 heads do not divide features of width 6"):
        make(AttentionEncoder, num_heads=4)
    with pytest.raises(ValueError, match="num_components must be a positive integer, got 0"):
        make(SumPoolingEncoder, num_components=0)
    with pytest.raises(ValueError, match=r"AttentionEncoder: none of .* is in the data, which has \['text'\]"):
        make(AttentionEncoder).features({"text": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"expected a mask \(\*lead, B, 3\), got \(5, 2\)"):
        make(SumPoolingEncoder).head(torch.zeros(5, 3, 6), torch.ones(5, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"expected data of shape \(\*batch, 2, 3\), got \(5, 4\)"):
        make(SumPoolingEncoder).features({"image": torch.zeros(5, 4)})
