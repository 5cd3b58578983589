"""Methods that multivae has, too, in settings that are not the default; a new one joins with a line in CASES.

Test layer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pyro_mmvae as mm

DIMS = {"a": (3,), "b": (2, 2), "c": (4,)}
LATENT, ROWS = 2, 6
DISTS = {"a": "normal", "b": "laplace", "c": "categorical"}
PARAMS = {"a": {"scale": 1.2}, "b": {"scale": 1.1}}
FACTORS = {"a": 1.3, "b": 0.7, "c": 2.0}
PRIVATE = {"a": 1, "b": 2, "c": 1}
SEEN = {"a": [1, 1, 0, 1, 0, 1], "b": [1, 0, 1, 1, 1, 0], "c": [1, 1, 1, 0, 0, 0]}
TWO_SEEN = {"a": [1, 1, 0, 1, 0, 1], "b": [1, 0, 1, 1, 1, 1], "c": [1, 1, 1, 0, 1, 1]}


@dataclass(frozen=True)
class Case:
    """
    A method in one setting.

    :ivar name: of the test.
    :ivar method: multivae's class.
    :ivar config: options of multivae's config; likelihoods and factors are the module's.
    :ivar masks: what is observed; None: everything.
    :ivar forward: further arguments of multivae's ``forward``.
    :ivar summed: multivae's loss is a sum over rows, not a mean (spec 13.3).
    :ivar copies: how often each row is repeated in one draw of the loss.
    :ivar priors: multivae's parameters of priors -> where they are here ("": further on in the parameter before), and
        the gradient there over the gradient here.
    """

    name: str
    method: str
    config: Mapping[str, Any] = field(default_factory=dict)
    masks: Mapping[str, list[int]] | None = None
    forward: Mapping[str, Any] = field(default_factory=dict)
    summed: bool = False
    copies: int = 700
    priors: Mapping[str, tuple[str, float]] = field(default_factory=dict)

    def model(self) -> Any:
        """multivae's model with small networks of its own kind, in double precision."""
        from multivae import models

        options: dict[str, Any] = {
            "n_modalities": len(DIMS), "latent_dim": LATENT, "input_dims": dict(DIMS), "decoders_dist": dict(DISTS),
            "decoder_dist_params": {m: dict(p) for m, p in PARAMS.items()}, "uses_likelihood_rescaling": True,
            "rescale_factors": dict(FACTORS),
        }  # fmt: skip
        config = getattr(models, f"{self.method}Config")(**options, **self.config)
        style = self.config.get("modalities_specific_dim")
        sizes = {m: 0 if style is None else style[m] if isinstance(style, Mapping) else style for m in DIMS}
        more = {"joint_encoder": small_joint_encoder()} if self.method == "JMVAE" else {}
        encoders = {m: small_encoder(shape, sizes[m]) for m, shape in DIMS.items()}
        decoders = {m: small_decoder(shape, sizes[m]) for m, shape in DIMS.items()}
        model = getattr(models, self.method)(config, encoders, decoders, **more).double()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad and ("prior" in name or name == "_pc_params"):
                    parameter.copy_(0.3 * torch.randn(parameter.shape, dtype=torch.float64))
        return model

    def here(self, model: Any, folder: Path) -> mm.MultimodalVAE:
        """The same model here, on the very same networks."""
        write(model, folder)
        own = {"joint_encoder": model.joint_encoder} if self.method == "JMVAE" else {}
        return mm.compat.multivae.load(folder, encoders=dict(model.encoders), decoders=dict(model.decoders), **own)

    def obs_mask(self) -> dict[str, Tensor] | None:
        """What is observed."""
        return None if self.masks is None else {m: torch.tensor(v).bool() for m, v in self.masks.items()}

    def bound(self, model: Any) -> None:
        """
        Let multivae return the bound itself.

        With DReG its loss is a surrogate, the weighted mean of the log-weights, whose gradient alone means something.
        """
        model.model_config.loss = model.objective = "iwae_looser"


def write(model: Any, folder: Path) -> None:
    """What ``model.save`` writes, but for the pickles."""
    folder.mkdir(parents=True, exist_ok=True)
    model.model_config.save_json(str(folder), "model_config")
    torch.save({"model_state_dict": model.state_dict()}, folder / "model.pt")
    json.loads((folder / "model_config.json").read_text())


def rows() -> dict[str, Tensor]:
    """A batch without special values."""
    data = {m: torch.randn(ROWS, *shape, dtype=torch.float64) for m, shape in DIMS.items()}
    data["c"] = torch.eye(4, dtype=torch.float64)[torch.randint(4, (ROWS,))]
    return data


def small_encoder(shape: tuple[int, ...], style: int) -> nn.Module:
    """An encoder as multivae wants it: affine, with a bend."""
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn.base_architectures import BaseEncoder

    class Small(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.latent_dim, self.style_dim = LATENT, style
            self.net = nn.Linear(torch.Size(shape).numel(), 2 * (LATENT + style))

        def forward(self, x: Tensor) -> Any:
            out = self.net(x.flatten(1)).tanh()
            loc, raw, own, own_raw = out.split([LATENT, LATENT, style, style], -1)
            private = {"style_embedding": own, "style_log_covariance": own_raw} if style else {}
            return ModelOutput(embedding=loc, log_covariance=raw.clone(), **private)  # multivae writes into it

    return Small()


def small_decoder(shape: tuple[int, ...], style: int) -> nn.Module:
    """A decoder as multivae wants it: affine."""
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn.base_architectures import BaseDecoder

    class Small(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(LATENT + style, torch.Size(shape).numel())

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.net(z).reshape(-1, *shape))

    return Small()


def small_joint_encoder() -> nn.Module:
    """A joint encoder as multivae wants it: affine, with a bend."""
    from multivae.models.nn import BaseJointEncoder
    from pythae.models.base.base_utils import ModelOutput

    class Small(BaseJointEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.latent_dim = LATENT
            self.net = nn.Linear(sum(torch.Size(s).numel() for s in DIMS.values()), 2 * LATENT)

        def forward(self, x: Mapping[str, Tensor]) -> Any:
            loc, raw = self.net(torch.cat([x[m].flatten(1) for m in DIMS], -1)).tanh().chunk(2, -1)
            return ModelOutput(embedding=loc, log_covariance=raw)

    return Small()


_PRIOR = "model.story.program.prior"
_NORMAL = {"prior_and_posterior_dist": "normal"}
_SOFTPLUS = {"prior_and_posterior_dist": "normal_with_softplus", "learn_modality_prior": False}
_IWAE = {"loss": "iwae_looser"}
_DREG = {"loss": "dreg_looser"}
_SCALE = {"prior_log_var": (f"{_PRIOR}.logits", 1.0)}
_LOG_SCALE = {"prior_log_var": (f"{_PRIOR}.log_scale", 0.5)}
_PRIVATE = {"modalities_specific_dim": PRIVATE, "beta": 1.5}
_DMVAE = _PRIVATE | {"modalities_specific_betas": {"a": 0.5, "b": 1.2, "c": 2.0}}
_PLUS = {"modalities_specific_dim": 2, "K": 2, "beta": 1.3, "loss": "iwae_looser"}
_PLUS_DREG = _PLUS | _DREG | {"beta": 1.0}  # its factor w on gradients is the doubly reparametrized one for 1 alone
_THREE = {"number_of_clusters": 3}
_R = {f"logvars_priors.{m}": (f"guide.fusion.m_z_{m}.auxiliary.logits", 1.0) for m in DIMS}
_R_LOG = {f"logvars_priors.{m}": (f"guide.fusion.m_z_{m}.auxiliary.log_scale", 0.5) for m in DIMS}
_CLUSTERS = {"_pc_params": (f"{_PRIOR}.logits", 1.0), "mean_clusters.0": (f"{_PRIOR}.loc", 1.0)}
_CLUSTERS |= {"mean_clusters.1": ("", 1.0), "mean_clusters.2": ("", 1.0)}
_CLUSTERS |= {f"r_{name}": here for name, here in _R.items()}

CASES = [
    Case("MVAE", "MVAE", {"k": 3, "beta": 1.7}, forward={"epoch": 10}, copies=300),
    Case("MVAE joint", "MVAE", {"use_subsampling": False, "beta": 0.6}, forward={"epoch": 10}),
    Case("MVTCAE", "MVTCAE", {"alpha": 0.4, "beta": 1.5}),
    Case("CRMVAE", "CRMVAE", {"beta": 1.4}, summed=True),
    Case("JMVAE", "JMVAE", {"alpha": 0.6, "beta": 1.4}, forward={"epoch": 10}),
    Case("MoPoE", "MoPoE", {"beta": 1.6}),
    Case("MoPoE masked", "MoPoE", {"beta": 1.6}, SEEN),
    Case("MoPoE subsets", "MoPoE", {"subsets": [["a"], ["b"], ["c"], ["a", "c"]]}, SEEN),
    Case("MoPoE private", "MoPoE", _PRIVATE | {"beta_style": 0.5}, SEEN, copies=400),
    Case("DMVAE", "DMVAE", _DMVAE, copies=300),
    Case("DMVAE masked", "DMVAE", _DMVAE, TWO_SEEN, copies=300),
    Case("MMVAE", "MMVAE", {"K": 3} | _IWAE, summed=True, copies=250, priors=_SCALE),
    Case("MMVAE masked", "MMVAE", {"K": 3} | _IWAE, SEEN, summed=True, copies=250, priors=_SCALE),
    Case("MMVAE K = 1", "MMVAE", {"K": 1} | _NORMAL | _IWAE, SEEN, summed=True, copies=500, priors=_LOG_SCALE),
    Case("MMVAE dreg", "MMVAE", {"K": 3}, summed=True, copies=250, priors=_SCALE),
    Case("MMVAE dreg masked", "MMVAE", {"K": 2} | _NORMAL, SEEN, summed=True, copies=250, priors=_LOG_SCALE),
    Case("MMVAE+", "MMVAEPlus", _PLUS, summed=True, copies=200, priors=_R),
    Case("MMVAE+ masked", "MMVAEPlus", _PLUS, SEEN, summed=True, copies=300, priors=_R),
    Case("MMVAE+ softplus", "MMVAEPlus", _PLUS | _SOFTPLUS, SEEN, summed=True, copies=300),
    Case("MMVAE+ dreg", "MMVAEPlus", _PLUS_DREG | _NORMAL, SEEN, summed=True, copies=300, priors=_R_LOG),
    Case("CMVAE", "CMVAE", _PLUS | _THREE, summed=True, copies=200, priors=_CLUSTERS),
    Case("CMVAE masked", "CMVAE", _PLUS | _THREE, SEEN, summed=True, copies=300, priors=_CLUSTERS),
    Case("CMVAE dreg", "CMVAE", _PLUS_DREG | _THREE, SEEN, summed=True, copies=300, priors=_CLUSTERS),
]
