"""
What hidden entries save at image size: ``python -m benchmarks.images``.

Below the table: the joint term of MVAE by hand, with only the observed rows of a modality in its networks. Its own
ratio is what the machine's matrix products leave to be had.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import pyro
import torch
from torch import Tensor

import pyro_mmvae as mm
from benchmarks.by_hand import Nets, kl, log_normal
from benchmarks.timing import interleaved
from pyro_mmvae.training.batches import PreparedBatches
from pyro_mmvae.training.traced import TracedLoss

COUNT, SHAPE, HIDDEN, LATENT = 5, (3, 28, 28), 512, 64
NAMES = tuple(f"m{i}" for i in range(COUNT))
#: method -> constructor, and the largest share of the complete step's time that half of the entries may take
METHODS: dict[str, tuple[Callable[..., mm.MultimodalVAE], float]] = {
    "MVAE joint": (lambda e, d: mm.MVAE(e, d, latent_dim=LATENT, unimodal=False), 0.65),
    "MMVAE": (lambda e, d: mm.MMVAE(e, d, latent_dim=LATENT, num_particles=1, prior="normal"), 0.45),
    "MoPoE": (lambda e, d: mm.MoPoE(e, d, latent_dim=LATENT), 0.45),
}


def step_of(build: Callable[..., mm.MultimodalVAE], rate: float, batch_size: int) -> Callable[[], None]:
    """A training step as ``fit`` takes it, with a share ``rate`` of all modality entries hidden at random."""
    enc = {m: mm.nn.MLPEncoder(SHAPE, LATENT, hidden=(HIDDEN, HIDDEN)) for m in NAMES}
    dec = {m: mm.nn.MLPDecoder(LATENT, SHAPE, hidden=(HIDDEN, HIDDEN)) for m in NAMES}
    vae = build(enc, dec)
    optimizer = torch.optim.Adam(vae.parameters(), 1e-3, fused=True)
    rows = 4 * batch_size
    mask = {m: torch.rand(rows) >= rate for m in NAMES}
    prepared = vae.model.prepare({m: torch.rand(rows, *SHAPE) for m in NAMES}, mask)
    batches = PreparedBatches(*prepared, batch_size, generator=torch.Generator().manual_seed(0))
    endless = (batch for _ in iter(int, 1) for batch in batches)
    loss_and_grads = TracedLoss(vae)

    def step() -> None:
        data, seen = next(endless)
        optimizer.zero_grad()
        loss_and_grads(data, seen, scale=1 / batch_size)
        optimizer.step()

    return step


def by_hand(rate: float, batch_size: int) -> Callable[[], None]:
    """The joint term of MVAE in plain PyTorch, networks on observed rows alone."""
    nets = Nets(COUNT, math.prod(SHAPE), HIDDEN, LATENT)
    optimizer = torch.optim.Adam(nets.parameters(), 1e-3, fused=True)
    images = torch.rand(COUNT, 4 * batch_size, math.prod(SHAPE))
    observed = torch.rand(COUNT, 4 * batch_size) >= rate

    def step() -> None:
        cut = torch.randint(4 * batch_size, (batch_size,))
        rows = [(observed[i, cut].nonzero().squeeze(-1)) for i in range(COUNT)]
        x = [images[i, cut[r]] for i, r in enumerate(rows)]
        optimizer.zero_grad()
        (joint_term(nets, x, rows, batch_size) / batch_size).backward()
        optimizer.step()

    return step


def joint_term(nets: Nets, x: list[Tensor], rows: list[Tensor], batch_size: int) -> Tensor:
    """KL(q || p) - E log p(x_O | z), summed; x and rows hold what is observed of each modality."""
    precision, weighted = torch.ones(batch_size, LATENT), torch.zeros(batch_size, LATENT)
    for encode, v, r in zip(nets.enc, x, rows, strict=True):
        loc, log_scale = encode(v).chunk(2, -1)
        tau = (-2 * log_scale).exp()
        precision, weighted = precision.index_add(0, r, tau), weighted.index_add(0, r, tau * loc)
    loc, scale = weighted / precision, precision.rsqrt()
    z = loc + scale * torch.randn_like(loc)
    return kl(loc, scale).sum() - sum(
        log_normal(v, d(z[r])).sum() for d, v, r in zip(nets.dec, x, rows, strict=True)
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    heads = "{:12s} {:>6s} {:>9s} {:>9s} {:>6s} {:>5s}".format("method", "batch", "complete", "half", "ratio", "bar")
    print(heads + "   milliseconds, medians")
    for name, batch_size in (*((name, 128) for name in METHODS), ("MVAE joint", 256), ("MMVAE", 256)):
        build, bar = METHODS[name]
        steps = {"complete": step_of(build, 0.0, batch_size), "half": step_of(build, 0.5, batch_size)}
        with pyro.validation_enabled(False):
            seconds = interleaved(steps, rounds=options.rounds, warmup=3)
        ratio = seconds["half"] / seconds["complete"]
        complete, half = (1e3 * seconds[k] for k in ("complete", "half"))
        print(f"{name:12s} {batch_size:6d} {complete:9.1f} {half:9.1f} {ratio:6.2f} {bar:5.2f}", flush=True)
    for batch_size in (128, 256):
        steps = {"complete": by_hand(0.0, batch_size), "half": by_hand(0.5, batch_size)}
        seconds = interleaved(steps, rounds=options.rounds, warmup=3)
        ratio = seconds["half"] / seconds["complete"]
        complete, half = (1e3 * seconds[k] for k in ("complete", "half"))
        print(f"{'by hand':12s} {batch_size:6d} {complete:9.1f} {half:9.1f} {ratio:6.2f}", flush=True)


if __name__ == "__main__":
    main()
