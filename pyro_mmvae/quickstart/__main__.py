"""Digits with missing parts, from the data to pictures of what was learned; the file to read first.

Layer: quickstart. Run it with ``python -m pyro_mmvae.quickstart``; results go to ``quickstart-output/``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from pyro.optim import ClippedAdam
from torch import Tensor, nn

import pyro_mmvae as mm
from pyro_mmvae.objectives import Annealed, Nothing, Powerset
from pyro_mmvae.quickstart import baselines, pictures, scores, tables
from pyro_mmvae.quickstart.cohort import command

LATENT, HIDDEN = 24, (192, 192)
EPOCHS, BATCH = 250, 128


class Digit(nn.Module):
    """How one digit comes about: a code z, and from it both halves of the image and the name."""

    def __init__(self) -> None:
        super().__init__()
        grey = mm.nn.Binomial(16)  # grey levels are counts from 0 to 16
        self.top = mm.nn.MLPDecoder(LATENT, (4, 8), likelihood=grey, hidden=HIDDEN)
        self.bottom = mm.nn.MLPDecoder(LATENT, (4, 8), likelihood=grey, hidden=HIDDEN)
        self.label = mm.nn.MLPDecoder(LATENT, (), likelihood=mm.nn.Categorical(10), hidden=(64,))

    def forward(self) -> None:
        """One sample: no data, no masks, no plate."""
        z = pyro.sample("z", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
        pyro.sample("top", self.top(z))
        pyro.sample("bottom", self.bottom(z))
        pyro.sample("label", self.label(z))


def to_unit(x: Tensor) -> Tensor:  # shape: that of x
    """Grey levels 0..16 as numbers in [0, 1]."""
    return x / 16


def build(steps: int) -> mm.MultimodalVAE:
    """The model, the guide and the objective, for a training of so many steps."""
    model = mm.observe(Digit(), modalities=("top", "bottom", "label"))
    encoders: dict[str, nn.Module] = {
        "top": mm.nn.MLPEncoder((4, 8), LATENT, hidden=HIDDEN, dropout=0.1, transform=to_unit),
        "bottom": mm.nn.MLPEncoder((4, 8), LATENT, hidden=HIDDEN, dropout=0.1, transform=to_unit),
        "label": mm.nn.EmbeddingEncoder(10, LATENT, hidden=(64,)),
    }
    guide = mm.guides.Product(model, encoders)  # q(z | what is observed): the prior times one expert for each part

    # What is maximized, for a digit that shows O, with S running over the subsets of O:
    #   twice the evidence lower bound of x_O,
    #   a quarter of each bound in which S alone has to explain all of x_O,
    #   minus KL(q(z | x_O) || q(z | x_S)) with the first one held fixed: S learns all that O leaves possible.
    beta, rescale = Annealed(1.0, steps // 2), {"label": 4.0}  # the name of a digit counts four times
    table = mm.Terms(
        [
            mm.Term(weight=2.0, beta=beta, rescale=rescale),
            mm.Term(Powerset(), weight=0.25, subsets="contained", beta=beta, rescale=rescale),
            mm.Term(target=Nothing(), prior=Powerset(max_size=2), beta=beta, detach=frozenset({"posterior"})),
        ]
    )
    return mm.MultimodalVAE(model, guide, mm.ELBO(table))


def train(vae: mm.MultimodalVAE, digits: mm.datasets.MultimodalDataset, epochs: int) -> None:
    """Plain stochastic variational inference."""
    from tqdm import tqdm

    batches = digits.batches(BATCH, shuffle=True)
    decay = 0.02 ** (1 / (epochs * len(batches)))  # of the learning rate, per step
    optimizer = ClippedAdam({"lr": 4e-3, "betas": (0.9, 0.99), "lrd": decay, "clip_norm": 1e3})
    svi = SVI(vae.model, vae.guide, optimizer, loss=vae.objective)
    progress = tqdm(range(epochs), desc="training", unit="epoch")
    for _ in progress:
        loss = sum(svi.step(data, obs_mask) for data, obs_mask in batches)
        progress.set_postfix_str(f"loss {loss / len(digits):.1f} per digit", refresh=False)
    vae.eval()


def run(seed: int, epochs: int, particles: int) -> tuple[mm.MultimodalVAE, mm.datasets.MultimodalDataset, tables.Run]:
    """Train with one seed; the model, the held-out digits and their scores."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    complete, held_out = mm.datasets.digits().split(0.8, seed=0)
    hidden = complete.hide(0.5, seed=seed)  # half of all entries, at least one left in each row
    print(f"Seed {seed}, training digits: {hidden}")

    start = time.process_time()
    vae = build(epochs * -(-len(hidden) // BATCH))
    train(vae, hidden, epochs)
    trained = time.process_time()
    model = scores.of_model(vae, held_out, particles=particles)
    others = baselines.of_baselines(hidden, complete, held_out)
    return vae, held_out, tables.Run(seed, model, others, trained - start, time.process_time() - trained)


def _count(text: str) -> int:
    """An option that is a number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text!r}")
    return int(text)


def main(argv: Sequence[str] | None = None) -> None:
    """Train, print the tables, draw the pictures."""
    argv = sys.argv[1:] if argv is None else argv
    if any(option.partition("=")[0] == "--tables" for option in argv):
        command.main(argv)
        return
    parser = argparse.ArgumentParser(prog="python -m pyro_mmvae.quickstart", description=main.__doc__)
    parser.add_argument("--tables", nargs="+", metavar="CSV", help="files of your own instead; see --tables --help")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=_count, default=1, help="number of trainings, from --seed on; tables are means")
    parser.add_argument("--epochs", type=_count, default=EPOCHS)
    parser.add_argument("--particles", type=_count, default=1000, help="importance samples per log-likelihood")
    parser.add_argument("--output", type=Path, default=Path("quickstart-output"))
    options = parser.parse_args(argv)

    torch.set_num_threads(1)  # networks this small gain next to nothing from more, and runs are the same everywhere
    seeds = range(options.seed, options.seed + options.seeds)
    runs = []
    for seed in seeds:
        vae, held_out, done = run(seed, options.epochs, options.particles)
        runs.append(done)
    print(f"\n{tables.report(runs, len(held_out), options.particles)}")
    print(f"\nThe pictures of seed {seeds[-1]}, and an ArviZ file:")
    for path in pictures.draw_all(vae, held_out, options.output):
        print(f"  {path}")


if __name__ == "__main__":
    main()
