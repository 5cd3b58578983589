"""Training steps against hand-written PyTorch: ``python -m benchmarks.speed``."""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Callable, Iterable, Iterator

import pyro
import torch
from pyro.infer import SVI
from pyro.optim import ClippedAdam
from torch import Tensor

import pyro_mmvae as mm
from benchmarks.by_hand import LOSSES, Nets
from benchmarks.timing import interleaved
from pyro_mmvae.masks import Data, ObsMask
from pyro_mmvae.training.batches import PreparedBatches
from pyro_mmvae.training.traced import TracedLoss

Batch = tuple[Data, ObsMask]

COUNT, SIZE, HIDDEN, LATENT, BATCH = 5, 50, 64, 16, 128
NAMES = tuple(f"m{i}" for i in range(COUNT))


def ours(method: str) -> mm.MultimodalVAE:
    """The library's method with the networks of the comparison."""
    enc = {m: mm.nn.MLPEncoder(SIZE, LATENT, hidden=(HIDDEN, HIDDEN)) for m in NAMES}
    dec = {m: mm.nn.MLPDecoder(LATENT, SIZE, hidden=(HIDDEN, HIDDEN)) for m in NAMES}
    if method == "MVAE joint":
        return mm.MVAE(enc, dec, latent_dim=LATENT, unimodal=False)
    if method == "MMVAE":
        return mm.MMVAE(enc, dec, latent_dim=LATENT, num_particles=1, prior="normal", learn_prior=False)
    if method == "JMVAE":
        joint = mm.nn.JointEncoder(dict.fromkeys(NAMES, SIZE), LATENT, hidden=(HIDDEN,), features=(HIDDEN,))
        return mm.JMVAE(enc, dec, latent_dim=LATENT, joint_encoder=joint)
    return {"MVAE": mm.MVAE, "MoPoE": mm.MoPoE, "MVTCAE": mm.MVTCAE}[method](enc, dec, latent_dim=LATENT)


def dataset() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Random data with half of the entries hidden, enough for ten batches; their order is random in every pass."""
    rows = 10 * BATCH
    return {m: torch.randn(rows, SIZE) for m in NAMES}, {m: torch.rand(rows) > 0.5 for m in NAMES}


def forever(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Pass after pass."""
    while True:
        yield from batches


def our_step(vae: mm.MultimodalVAE, trace: bool = True) -> Callable[[], None]:
    """One step as ``fit`` takes it: cut a prepared batch, loss and gradients, fused Adam."""
    optimizer = torch.optim.Adam(vae.parameters(), 1e-3, fused=True)
    data, mask = vae.model.prepare(*dataset())
    batches = forever(PreparedBatches(data, mask, BATCH, generator=torch.Generator().manual_seed(0)))
    loss_and_grads = TracedLoss(vae) if trace else functools.partial(eager, vae)

    def step() -> None:
        rows, seen = next(batches)
        optimizer.zero_grad()
        loss_and_grads(rows, seen, scale=1 / BATCH)
        optimizer.step()

    return step


def eager(vae: mm.MultimodalVAE, data: Data, mask: ObsMask, scale: float) -> None:
    """The step without a recording."""
    (vae.objective.differentiable_loss(vae.model, vae.guide, data, mask) * scale).backward()


def hand_step(method: str) -> Callable[[], None]:
    """The same arithmetic by hand."""
    nets = Nets(COUNT, SIZE, HIDDEN, LATENT, joint=method == "JMVAE")
    optimizer = torch.optim.Adam(nets.parameters(), 1e-3, fused=True)
    data, mask = dataset()
    x, seen = list(data.values()), torch.stack(list(mask.values()))

    def cut() -> Iterator[tuple[list[Tensor], Tensor]]:
        while True:
            for rows in torch.randperm(seen.shape[1]).split(BATCH):
                yield [v[rows] for v in x], seen[:, rows]

    batches = cut()

    def step() -> None:
        loss = LOSSES[method](nets, *next(batches)) / BATCH
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def svi_step(vae: mm.MultimodalVAE) -> Callable[[], None]:
    """Stock SVI with the library's objective, on data as a user has it: every batch passes the checks."""
    svi = SVI(vae.model, vae.guide, ClippedAdam({"lr": 1e-3}), vae.objective)
    data, mask = dataset()

    def step() -> None:
        rows = torch.randint(10 * BATCH, (BATCH,))
        svi.step({m: v[rows] for m, v in data.items()}, {m: v[rows] for m, v in mask.items()})

    return step


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    ratios = []
    heads = ("by hand", "ours", "ratio", "eager", "SVI.step")
    print(f"{'method':12s} " + "{:>9s} {:>9s} {:>6s} {:>9s} {:>9s}".format(*heads) + "   milliseconds, medians")
    for method in LOSSES:
        pyro.clear_param_store()
        steps = {
            "hand": hand_step(method),
            "ours": our_step(ours(method)),
            "eager": our_step(ours(method), trace=False),
            "svi": svi_step(ours(method)),
        }
        with pyro.validation_enabled(False):
            seconds = interleaved(steps, rounds=options.rounds)
        ratio = seconds["ours"] / seconds["hand"]
        ratios.append(ratio)
        hand, own, slow, svi = (1e3 * seconds[k] for k in ("hand", "ours", "eager", "svi"))
        print(f"{method:12s} {hand:9.2f} {own:9.2f} {ratio:6.2f} {slow:9.2f} {svi:9.2f}", flush=True)
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    print(f"geometric mean of the ratios {mean:.2f}, largest {max(ratios):.2f}")


if __name__ == "__main__":
    main()
