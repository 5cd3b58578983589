"""``log_likelihood`` against a loop over samples, vectorized over particles: ``python -m benchmarks.likelihood``."""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor

import pyro_mmvae as mm
from benchmarks.speed import NAMES, SIZE, ours
from benchmarks.timing import interleaved

SAMPLES, PARTICLES = 100, 1000


@torch.no_grad()
def looped(
    vae: mm.MultimodalVAE, data: dict[str, Tensor], mask: dict[str, Tensor], skip: bool = False
) -> Tensor:  # shape: (B,)
    """
    One sample after the other, all its particles at once.

    :param skip: leave out the decoders of hidden modalities, where the usual loop runs all of them and masks.
    """
    out = []
    for n in range(SAMPLES):
        row, seen = {m: x[n : n + 1] for m, x in data.items()}, {m: v[n : n + 1] for m, v in mask.items()}
        q = vae.posterior(row, seen)
        z = q.sample((PARTICLES,))  # (K, 1, D)
        log_w = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1) - q.log_prob(z)
        for m in NAMES:
            if not skip or bool(seen[m]):
                score = vae.model.story.program.decoders[m](z).log_prob(row[m])
                log_w = log_w + torch.where(seen[m], score, 0.0)
        out.append(log_w.logsumexp(0)[0] - math.log(PARTICLES))
    return torch.stack(out)


def row_by_row(vae: mm.MultimodalVAE, data: dict[str, Tensor], mask: dict[str, Tensor]) -> Tensor:  # shape: (B,)
    """The library's own estimate, one call per sample."""
    rows = [slice(n, n + 1) for n in range(SAMPLES)]
    calls = [({m: x[r] for m, x in data.items()}, {m: v[r] for m, v in mask.items()}) for r in rows]
    return torch.cat([vae.log_likelihood(*call, num_particles=PARTICLES) for call in calls])


def main() -> None:
    """Print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    vae = ours("MVAE joint").eval()
    data = {m: torch.randn(SAMPLES, SIZE) for m in NAMES}
    mask = {m: torch.rand(SAMPLES) > 0.5 for m in NAMES}
    steps = {
        "library": lambda: vae.log_likelihood(data, mask, num_particles=PARTICLES),
        "loop": lambda: looped(vae, data, mask),
        "skipping": lambda: looped(vae, data, mask, skip=True),
        "verb": lambda: row_by_row(vae, data, mask),
    }
    seconds = interleaved(steps, rounds=options.rounds, warmup=2)
    own = seconds["library"]
    print(f"log_likelihood, {SAMPLES} samples, half of the entries hidden, K = {PARTICLES}: {own:.3f} s")
    loops = {
        "loop": "a loop over samples by hand, all decoders",
        "skipping": "the same, without the decoders of hidden modalities",
        "verb": "the verb itself, sample by sample",
    }
    for name, what in loops.items():
        print(f"  {what}: {seconds[name]:.3f} s, {seconds[name] / own:.1f} times as long")
    both = torch.stack([steps["library"](), steps["loop"]()]).mean(-1).tolist()
    print(f"  mean of the estimates: {both[0]:.2f} and {both[1]:.2f} nats")


if __name__ == "__main__":
    main()
