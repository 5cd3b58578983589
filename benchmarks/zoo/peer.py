"""
multivae's methods on the same rows, with the same networks, likelihoods and budget.

Its models take any network that answers in its form, so the networks are the library's, wrapped. It knows no binomial
likelihood, but keeps one function per modality that returns log-densities (``recon_log_probs``); there the likelihood
of the library's own decoder is put, so that log-likelihoods on both sides are those of the same family. Training is a
plain loop over its loss per row, with the library's optimizer, rates, clipping and batches; Pyro's and torch's checks
of arguments are off on both sides.

Scores are computed by the library, from a model with the very weights that multivae has trained: the posteriors of both
are the same functions of the experts. multivae's own estimates of log-likelihoods are wrong for some methods, so they
are not shown. Its JMVAE refuses incomplete rows and gets the complete ones alone; its DMVAE trains single experts
without the prior and answers with it, and is scored as it answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import multivae.models as theirs
import pyro
import torch
from multivae.data.datasets.base import IncompleteDataset, MultimodalBaseDataset
from multivae.models.nn.base_architectures import BaseJointEncoder
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn.base_architectures import BaseDecoder, BaseEncoder
from torch import Tensor, nn

import pyro_mmvae as mm
from benchmarks.zoo.methods import DRAWS, METHODS
from benchmarks.zoo.networks import LATENT, PRIVATE, Networks
from benchmarks.zoo.training import BATCH, CLIP, LR, Budget

__all__ = ["PEERS", "Peer", "build", "fit_within"]


def _nothing(trained: Any, own: mm.MultimodalVAE) -> None:
    """Every weight is in the networks."""


def _clusters(trained: Any, own: mm.MultimodalVAE) -> None:
    """The mixture prior of CMVAE."""
    prior: Any = own.model
    prior = prior.story.program.prior
    with torch.no_grad():
        prior.logits.copy_(trained._pc_params)
        prior.loc.copy_(torch.cat(list(trained.mean_clusters)))


@dataclass(frozen=True)
class Peer:
    """
    A method that multivae has.

    :param config: options of its config class, beside sizes and factors.
    :param own: options of the library's class under which it has multivae's posteriors.
    :param private: None, or PRIVATE in the form that its config takes.
    :param complete: whether it takes complete rows only.
    :param transfer: copies weights that are in no network.
    """

    kind: str
    config: Mapping[str, Any] = field(default_factory=dict)
    own: Mapping[str, Any] = field(default_factory=dict)
    private: Any = None
    complete: bool = False
    transfer: Callable[[Any, mm.MultimodalVAE], None] = _nothing


_MIXTURE = {"prior_and_posterior_dist": "normal", "K": DRAWS, "loss": "iwae_looser"}
_ONE_SIZE = next(iter(PRIVATE.values()))  # MMVAE+ and CMVAE take one size for all modalities

#: row of the table -> multivae's method
PEERS: dict[str, Peer] = {
    "MVAE": Peer("MVAE", {"warmup": 0}),
    "MVAE joint": Peer("MVAE", {"warmup": 0, "use_subsampling": False}),
    "MMVAE": Peer("MMVAE", {**_MIXTURE, "learn_prior": False}),
    "MoPoE": Peer("MoPoE"),
    "MVTCAE": Peer("MVTCAE", {"alpha": 5 / 6, "beta": 1.0}),
    "JMVAE": Peer("JMVAE", {"alpha": 0.1, "warmup": 0}, own={"subset_posterior": "product"}, complete=True),
    "DMVAE": Peer("DMVAE", own={"unimodal_prior_expert": True}, private=PRIVATE),
    "MMVAEPlus": Peer("MMVAEPlus", _MIXTURE, private=_ONE_SIZE),
    "CMVAE": Peer("CMVAE", _MIXTURE, private=_ONE_SIZE, transfer=_clusters),
    "CRMVAE": Peer("CRMVAE", {"beta": 1.0}),
}


def build(name: str, nets: Networks) -> tuple[Any, mm.MultimodalVAE]:
    """multivae's model, and the library's on the same networks, with which it is scored."""
    peer = PEERS[name]
    method = METHODS[name]
    own, factors = method.build(nets, **peer.own), {} if method.rescale is None else method.rescale
    shared: dict[str, Any] = {
        "encoders": {m: _Encoder(e, nets.private_encoders.get(m)) for m, e in nets.encoders.items()},
        "decoders": {m: _Decoder(d) for m, d in nets.decoders.items()},
    }
    if peer.kind == "JMVAE":
        shared["joint_encoder"] = _JointEncoder(_joint_network(own))
    config = getattr(theirs, f"{peer.kind}Config")(
        n_modalities=len(nets.encoders),
        latent_dim=LATENT,
        uses_likelihood_rescaling=True,
        rescale_factors={m: factors.get(m, 1.0) for m in nets.encoders},
        **({} if peer.private is None else {"modalities_specific_dim": peer.private}),
        **peer.config,
    )
    model = getattr(theirs, peer.kind)(config, **shared)
    model.recon_log_probs = {m: _log_density(d) for m, d in nets.decoders.items()}
    return model, own


def fit_within(name: str, model: Any, train: mm.MultimodalDataset, seconds: float, seed: int) -> Budget:
    """Train for so many CPU seconds."""
    rows = train.complete_cases() if PEERS[name].complete else train
    budget = Budget(seconds)
    torch.manual_seed(seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, LR, fused=True)
    model.train()
    with pyro.validation_enabled(False):
        for epoch, inputs in _passes(rows, incomplete=not PEERS[name].complete, seed=seed):
            optimizer.zero_grad()
            _loss_per_row(model(inputs, epoch=epoch, batch_ratio=0.0), len(inputs.data["label"])).backward()
            nn.utils.clip_grad_norm_(parameters, CLIP)
            optimizer.step()
            if budget.step(optimizer):
                break
    model.eval()
    return budget


def _loss_per_row(found: ModelOutput, rows: int) -> Tensor:
    """Some methods give a sum over the batch, some a mean, most of them both; DMVAE a mean alone."""
    total: Tensor | None = found.get("loss_sum")
    return found.loss if total is None else total / rows


def _passes(rows: mm.MultimodalDataset, *, incomplete: bool, seed: int) -> Iterator[tuple[int, Any]]:
    """Batches in multivae's form, pass after pass; what is hidden holds zeros."""
    filled = {m: torch.nan_to_num(rows.data[m]) for m in rows.modalities}
    batches = mm.MultimodalDataset(filled, rows.obs_mask).batches(BATCH, shuffle=True, seed=seed)
    epoch = 0
    while True:
        epoch += 1
        for data, obs_mask in batches:
            yield epoch, IncompleteDataset(data, obs_mask) if incomplete else MultimodalBaseDataset(data)


class _Encoder(BaseEncoder):
    """The shared expert, and the private one where there is one."""

    def __init__(self, shared: Any, private: Any) -> None:
        super().__init__()
        self.latent_dim, self.shared, self.private = shared.latent_dim, shared, private

    def forward(self, x: Tensor) -> ModelOutput:
        loc, log_variance = _parameters(self.shared(x))
        if self.private is None:
            return ModelOutput(embedding=loc, log_covariance=log_variance)
        own, own_log_variance = _parameters(self.private(x))
        return ModelOutput(
            embedding=loc, log_covariance=log_variance, style_embedding=own, style_log_covariance=own_log_variance
        )


class _JointEncoder(BaseJointEncoder):
    """The joint network, with everything observed."""

    def __init__(self, net: mm.nn.JointEncoder) -> None:
        super().__init__()
        self.latent_dim, self.net = net.latent_dim, net

    def forward(self, x: Mapping[str, Tensor]) -> ModelOutput:
        features = self.net.features(x)
        q = self.net.head(features, torch.ones(features.shape[:2], dtype=torch.bool, device=features.device))
        loc, log_variance = _parameters(q)
        return ModelOutput(embedding=loc, log_covariance=log_variance)


class _Decoder(BaseDecoder):
    """The raw output of a decoder, which its likelihood takes."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.latent_dim, self.net = net.latent_dim, net

    def forward(self, z: Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=self.net.net(z).reshape(z.shape[:-1] + self.net.raw_shape))


def _parameters(q: Any) -> tuple[Tensor, Tensor]:
    """Location and log-variance of an expert."""
    return q.base_dist.loc, 2 * q.base_dist.scale.log()


def _log_density(decoder: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """The likelihood of a decoder, from its raw output; entry by entry, with at least one dimension beyond the rows."""

    def log_density(raw: Tensor, x: Tensor) -> Tensor:
        value: Tensor = decoder.likelihood.distribution(raw).log_prob(x)
        return value if decoder.event_shape else value.unsqueeze(-1)

    return log_density


def _joint_network(own: mm.MultimodalVAE) -> mm.nn.JointEncoder:
    return next(module for module in own.modules() if isinstance(module, mm.nn.JointEncoder))
