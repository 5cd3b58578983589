"""Training steps against hand-written PyTorch: ``python -m benchmarks.speed``."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import pyro
import torch
from pyro.infer import SVI
from pyro.optim import ClippedAdam
from torch import Tensor

import pyro_mmvae as mm
from benchmarks.by_hand import LOSSES, Nets
from benchmarks.timing import interleaved

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


def batch() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Random data with half of the entries hidden, fresh each step."""
    return {m: torch.randn(BATCH, SIZE) for m in NAMES}, {m: torch.rand(BATCH) > 0.5 for m in NAMES}


def our_step(vae: mm.MultimodalVAE) -> Callable[[], None]:
    """One step as ``fit`` takes it: prepared batch, differentiable loss, fused Adam."""
    parameters = list(vae.parameters())
    optimizer = torch.optim.Adam(parameters, 1e-3, fused=True)
    stepper = mm.training.Stepper(vae)

    def step() -> None:
        data, mask = vae.model.prepare(*batch())
        optimizer.zero_grad()
        stepper(data, mask, scale=1 / BATCH)
        optimizer.step()

    return step


def hand_step(method: str) -> Callable[[], None]:
    """The same arithmetic by hand."""
    nets = Nets(COUNT, SIZE, HIDDEN, LATENT, joint=method == "JMVAE")
    optimizer = torch.optim.Adam(nets.parameters(), 1e-3, fused=True)

    def step() -> None:
        data, mask = batch()
        loss = LOSSES[method](nets, list(data.values()), torch.stack(list(mask.values()))) / BATCH
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def svi_step(vae: mm.MultimodalVAE) -> Callable[[], None]:
    """Stock SVI with the library's objective."""
    svi = SVI(vae.model, vae.guide, ClippedAdam({"lr": 1e-3}), vae.objective)
    return lambda: svi.step(*batch())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    ratios = []
    print(f"{'method':12s} {'by hand':>9s} {'ours':>9s} {'ratio':>6s} {'SVI.step':>9s}   milliseconds, medians")
    for method in LOSSES:
        pyro.clear_param_store()
        steps = {"hand": hand_step(method), "ours": our_step(ours(method)), "svi": svi_step(ours(method))}
        with pyro.validation_enabled(False):
            seconds = interleaved(steps, rounds=options.rounds)
        ratio = seconds["ours"] / seconds["hand"]
        ratios.append(ratio)
        hand, own, svi = (1e3 * seconds[k] for k in ("hand", "ours", "svi"))
        print(f"{method:12s} {hand:9.2f} {own:9.2f} {ratio:6.2f} {svi:9.2f}")
    print(f"geometric mean of the ratios {math.exp(sum(map(math.log, ratios)) / len(ratios)):.2f}, largest {max(ratios):.2f}")


if __name__ == "__main__":
    main()
