"""Likelihoods whose value is known, by multivae and here: ``python -m benchmarks.multivae_likelihoods``.

A linear Gaussian model, so that log p(x) has a closed form, with encoders that are not exact, as trained ones never
are. Both libraries run the very same networks.
"""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from multivae import models
from multivae.data.datasets.base import MultimodalBaseDataset
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn.base_architectures import BaseDecoder, BaseEncoder
from torch import Tensor, nn

import pyro_mmvae as mm

NAMES, FEATURES, ROWS, NOISE = ("a", "b", "c"), 3, 20, 0.7
SHIFT, STRETCH = 1.0, 1.3  # encoders: off by so many standard deviations, alternating in sign, and so much wider


@dataclass(frozen=True)
class Row:
    """
    One line of the table.

    :ivar name: what is estimated. :ivar method: by which method. :ivar private: with private latents.
    :ivar clusters: number of components of the prior. :ivar conditional: log p(b | a) in place of log p(a, b, c).
    :ivar single: one sample per call, in place of all samples in one.
    :ivar config: options of multivae's config.
    """

    name: str
    method: str
    private: bool = False
    clusters: int = 0
    conditional: bool = False
    single: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)


_NORMAL = {"prior_and_posterior_dist": "normal"}
TABLE = [
    Row("MVAE, joint", "MVAE"),
    Row("MMVAE, joint", "MMVAE", config=_NORMAL),
    Row("MoPoE, joint", "MoPoE"),
    Row("MoPoE, joint, sample by sample", "MoPoE", single=True),
    Row("DMVAE, joint", "DMVAE", private=True),
    Row("MMVAE+, joint", "MMVAEPlus", private=True, config=_NORMAL),
    Row("CMVAE, joint", "CMVAE", private=True, clusters=3, config={**_NORMAL, "number_of_clusters": 3}),
    Row("MVAE, b given a", "MVAE", conditional=True),
    Row("MMVAE, b given a", "MMVAE", conditional=True, config=_NORMAL),
]


class Linear:
    r"""
    The model :math:`z, w_m \sim \mathcal{N}(0, 1)`, :math:`x_m = u_m z + v_m w_m + b_m + 0.7\,\epsilon`, with u_m and
    v_m orthogonal, so that z and w_m are independent given x_m; or z from a mixture of unit Gaussians.
    """

    def __init__(self, row: Row) -> None:
        generator = torch.Generator().manual_seed(1)
        self.row = row
        self.shared, self.own, self.bias = {}, {}, {}
        for m in NAMES:
            u, v, b = torch.randn(3, FEATURES, generator=generator, dtype=torch.float64)
            self.shared[m], self.bias[m] = u, b
            self.own[m] = (v - u * (u @ v) / (u @ u)) * (1.0 if row.private else 0.0)
        self.centers = torch.linspace(-2, 2, row.clusters).double() if row.clusters else torch.zeros(1).double()
        z = self.centers[torch.randint(len(self.centers), (ROWS,), generator=generator)]
        z = z + torch.randn(ROWS, generator=generator, dtype=torch.float64)
        noise = torch.randn(len(NAMES), ROWS, FEATURES + 1, generator=generator, dtype=torch.float64)
        self.data = {
            m: z[:, None] * self.shared[m] + e[:, :1] * self.own[m] + self.bias[m] + NOISE * e[:, 1:]
            for m, e in zip(NAMES, noise, strict=True)
        }

    def exact(self) -> Tensor:  # shape: (ROWS,)
        """The closed form."""
        if self.row.conditional:
            return self._evidence(("a", "b")) - self._evidence(("a",))
        return self._evidence(NAMES)

    def _evidence(self, names: tuple[str, ...]) -> Tensor:  # shape: (ROWS,)
        shared, bias, x = (torch.cat([part[m] for m in names], -1) for part in (self.shared, self.bias, self.data))
        own = torch.block_diag(*[self.own[m].outer(self.own[m]) for m in names])
        covariance = shared.outer(shared) + own + NOISE**2 * torch.eye(len(shared)).double()
        means = bias + self.centers[:, None] * shared
        each = torch.distributions.MultivariateNormal(means[:, None], covariance).log_prob(x)
        return each.logsumexp(0) - math.log(len(self.centers))


class Encoder(BaseEncoder):
    """The posterior of z and of w_m given x_m, made wrong on purpose."""

    def __init__(self, model: Linear, m: str, sign: float) -> None:
        super().__init__()
        self.latent_dim = self.style_dim = 1
        self.maps = nn.ModuleDict()
        for name, direction, off in (("", model.shared[m], sign), ("style_", model.own[m], 0.0)):
            variance = 1 / (1 + (direction @ direction) / NOISE**2)
            weight = variance * direction / NOISE**2
            bias = -weight @ model.bias[m] + off * SHIFT * variance.sqrt()
            layer = nn.Linear(FEATURES, 1).double()
            layer.weight.data, layer.bias.data = weight[None], bias[None]
            self.maps[f"{name}embedding"] = layer
            spread = nn.Parameter((variance * STRETCH**2).log()[None])
            self.register_parameter(f"{name}log_covariance", spread)
        self.names = ("", "style_") if model.row.private else ("",)

    def forward(self, x: Tensor) -> ModelOutput:
        out = {}
        for name in self.names:
            loc = self.maps[f"{name}embedding"](x.reshape(-1, FEATURES))
            spread = getattr(self, f"{name}log_covariance").expand_as(loc).clone()
            out |= {f"{name}embedding": loc, f"{name}log_covariance": spread}
        return ModelOutput(**out)


class Decoder(BaseDecoder):
    """The mean of x_m."""

    def __init__(self, model: Linear, m: str) -> None:
        super().__init__()
        columns = [model.shared[m], model.own[m]] if model.row.private else [model.shared[m]]
        self.layer = nn.Linear(len(columns), FEATURES).double()
        self.layer.weight.data, self.layer.bias.data = torch.stack(columns, -1), model.bias[m].clone()

    def forward(self, z: Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=self.layer(z))


def at_multivae(row: Row, model: Linear) -> Any:
    """multivae's model of a row."""
    options: dict[str, Any] = {
        "n_modalities": len(NAMES),
        "latent_dim": 1,
        "input_dims": dict.fromkeys(NAMES, (FEATURES,)),
        "decoder_dist_params": {m: {"scale": NOISE} for m in NAMES},
    }
    if row.private:
        options["modalities_specific_dim"] = 1 if row.method in ("MMVAEPlus", "CMVAE") else dict.fromkeys(NAMES, 1)
    config = getattr(models, f"{row.method}Config")(**options, **row.config)
    encoders = {m: Encoder(model, m, (-1) ** i) for i, m in enumerate(NAMES)}
    theirs = getattr(models, row.method)(config, encoders, {m: Decoder(model, m) for m in NAMES}).double().eval()
    with torch.no_grad():
        for name in ("logvars_priors", "r_logvars_priors"):  # the auxiliary priors, learned ones differ from the prior
            for m in NAMES if hasattr(theirs, name) else ():
                getattr(theirs, name)[m].fill_(-1.0)
        for center, own in zip(model.centers, getattr(theirs, "mean_clusters", ()), strict=False):
            own.fill_(center)
    return theirs


def loaded(theirs: Any) -> mm.MultimodalVAE:
    """The same model here."""
    with TemporaryDirectory() as folder:
        theirs.model_config.save_json(folder, "model_config")
        torch.save({"model_state_dict": theirs.state_dict()}, Path(folder) / "model.pt")
        nets = {"encoders": dict(theirs.encoders), "decoders": dict(theirs.decoders)}
        return mm.compat.multivae.load(folder, **nets)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """multivae draws from the global generators of torch and NumPy; both are put back."""
    state = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed)
        yield
    np.random.set_state(state)


def _score(theirs: Any, row: Row, data: Mapping[str, Tensor], particles: int) -> float:
    """multivae's mean over samples."""
    rows = [slice(n, n + 1) for n in range(ROWS)] if row.single else [slice(None)]
    batches = [MultimodalBaseDataset({m: x[r] for m, x in data.items()}) for r in rows]
    if row.conditional:  # means over the batch
        return -sum(float(theirs.compute_cond_nll(b, ["a"], ["b"], particles)["b"]) for b in batches) / len(batches)
    return -sum(float(theirs.compute_joint_nll(b, K=particles, batch_size_K=100)) for b in batches) / ROWS


@torch.no_grad()
def estimates(row: Row, particles: int, runs: int) -> tuple[float, Tensor, Tensor | None]:
    """The closed form, and runs of either library (None: the method is not here), mean over rows in nats."""
    model = Linear(row)
    theirs = at_multivae(row, model)
    there, here = [], []
    for seed in range(runs):
        with seeded(seed):
            there.append(_score(theirs, row, model.data, particles))
    try:
        ours = loaded(theirs)
    except NotImplementedError:
        return float(model.exact().mean()), torch.tensor(there), None
    asked = {"given": {"a"}, "target": {"b"}} if row.conditional else {}
    for seed in range(runs):
        with seeded(seed):
            value = ours.log_likelihood(model.data, num_particles=particles, **asked)
            here.append(float(value.mean()))
    return float(model.exact().mean()), torch.tensor(there), torch.tensor(here)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--particles", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| nats per sample | closed form | multivae 1.0.3 | here |\n|---|---|---|---|")
    for row in TABLE:
        exact, there, here = estimates(row, options.particles, options.runs)
        cells = ["–" if x is None else f"{x.mean():.3f} ± {x.std():.3f}" for x in (there, here)]
        print(f"| {row.name} | {exact:.3f} | {cells[0]} | {cells[1]} |", flush=True)


if __name__ == "__main__":
    main()
