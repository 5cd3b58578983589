"""Running a model and a guide in plain Pyro, and reading densities per row off their traces.

Layer: checks, private.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from pyro_mmvae.distributions import stand_ins
from pyro_mmvae.handlers import replay
from pyro_mmvae.handlers.registration import unregistered
from pyro_mmvae.objectives.passes import plain_log_prob

__all__ = [
    "ProgramError",
    "Run",
    "blamed",
    "copies",
    "difference",
    "latents",
    "modality_of",
    "row_frame",
    "sample_sites",
    "scores",
    "trace",
    "unlike",
]

Program = Callable[..., Any]
Tensors = Mapping[str, Tensor]
Site = dict[str, Any]


def copies(tensors: Tensors) -> dict[str, Tensor]:
    """The same values in tensors that a program may spoil."""
    return {name: x.clone() for name, x in tensors.items()}


class ProgramError(Exception):
    """
    A program of the user's failed.

    :ivar program: "model", "guide" or "objective".
    :ivar site: the last site that it sampled before, if any.
    :ivar error: what it raised.
    """

    def __init__(self, program: str, site: str | None, error: Exception) -> None:
        self.program, self.site, self.error = program, site, error
        after = "" if site is None else f" after site {site!r}"
        said = str(error).strip().splitlines()
        super().__init__(f"{program} raises{after}: {type(error).__name__}: {' '.join(said)[:400]}")


class _Progress(Messenger):
    """Remembers the last site that was sampled."""

    site: str | None = None

    def _pyro_post_sample(self, msg: Message) -> None:
        if not isinstance(msg["fn"], _Subsample):
            self.site = msg["name"]


@dataclass
class Run:
    """
    One run of the guide, and of the model on its draws.

    :ivar values: the draws of all latents, those that only the model has included, without their gradients.
    """

    guide: Trace
    model: Trace
    values: dict[str, Tensor]


@contextmanager
def blamed(name: str) -> Iterator[None]:
    """What happens inside is the program's doing."""
    with _Progress() as progress:
        try:
            yield
        except ProgramError:
            raise
        except Exception as error:
            raise ProgramError(name, progress.site, error) from error


def trace(
    name: str,
    program: Program,
    data: Tensors,
    obs_mask: Tensors,
    values: Tensors | None = None,
    *,
    particles: tuple[int, int] | None = None,
    improper: bool = False,
) -> Trace:
    """
    Run a program on copies of the data.

    :param values: latent site -> the value it takes.
    :param particles: size and dim of a plate around everything.
    :param improper: let improper priors give stand-ins, where only the sites matter.
    :raises ProgramError: whatever goes wrong.
    """
    with ExitStack() as stack:
        stack.enter_context(blamed(name))
        tracer = stack.enter_context(poutine.trace())
        stack.enter_context(unregistered())
        if improper:
            stack.enter_context(stand_ins())
        if particles is not None:
            stack.enter_context(pyro.plate("particles", particles[0], dim=particles[1]))
        stack.enter_context(replay({} if values is None else values))
        program(copies(data), copies(obs_mask))
    return tracer.trace


def sample_sites(found: Trace) -> dict[str, Site]:
    """Sites with a density of their own: no subsampling, nothing deterministic."""
    return {
        name: site
        for name, site in found.nodes.items()
        if site["type"] == "sample" and not isinstance(site["fn"], _Subsample) and not _deterministic(site)
    }


def _deterministic(site: Site) -> bool:
    return bool(site["infer"].get("_deterministic")) or type(site["fn"]).__name__ == "_Deterministic"


def latents(found: Trace) -> dict[str, Site]:
    """The sites that are not observed."""
    return {name: site for name, site in sample_sites(found).items() if not site["is_observed"]}


def modality_of(name: str, site: Site, known: Collection[str]) -> str | None:
    """The modality that an observed site is, by its mark or its name."""
    if not site["is_observed"]:
        return None
    names = (site["infer"].get("modality"), name, name.removesuffix("_observed"))
    return next((m for m in names if m is not None and m in known), None)


def row_frame(found: Trace, size: int, sites: Collection[str] | None = None) -> Any:
    """The plate of the rows: called data, or the one with as many members that most sites lie in; None: no such."""
    frames = [
        frame
        for name, site in sample_sites(found).items()
        if sites is None or name in sites
        for frame in site["cond_indep_stack"]
        if frame.vectorized
    ]
    for frame in frames:
        if frame.name == "data":
            return frame
    counts = Counter(f.name for f in frames if f.size == size)
    name = counts.most_common(1)[0][0] if counts else None
    return next((f for f in frames if f.name == name), None)


def scores(found: Trace, frame: Any, *, lead: int | None = None) -> dict[str, Tensor]:
    """
    Log-densities by site, masked and without scales, ``(B,)`` inside the plate of the rows, ``()`` outside of it.

    :param lead: dim of a plate of particles; then ``(K, B)`` and ``(K,)``.
    :raises ProgramError: if a value has no density.
    """
    out = {}
    for name, site in sample_sites(found).items():
        try:
            score = plain_log_prob(site)
        except Exception as error:
            program = "model" if site["is_observed"] else "density"
            raise ProgramError(program, name, error) from error
        names = [f.name for f in site["cond_indep_stack"]]
        inside = frame is not None and frame.name in names
        keep = [d for d in (lead, frame.dim if inside else None) if d is not None]
        sizes = {f.dim: f.size for f in site["cond_indep_stack"] if f.dim in keep}
        out[name] = _reduced(score, keep, sizes)
    return out


def _reduced(score: Tensor, keep: list[int], sizes: Mapping[int, int]) -> Tensor:
    """All dimensions but some summed out."""
    wide = [sizes.get(d, 1) for d in range(min(keep, default=0), 0)]
    score = score.expand(torch.broadcast_shapes(score.shape, torch.Size(wide)))
    score = score.movedim(keep, list(range(len(keep)))) if keep else score
    return score.flatten(len(keep)).sum(-1) if score.dim() > len(keep) else score


def unlike(a: Tensor, b: Tensor, *, exact: bool = False) -> Tensor:
    """Where two tensors differ, beyond rounding unless ``exact``; NaN differs from everything."""
    if exact or not a.is_floating_point():
        return a != b
    tolerance = max(300 * torch.finfo(a.dtype).eps, 1e-9)  # sums of hundreds of terms, in blocks of other sizes
    same = (a == b) | ((a - b).abs() <= tolerance * (1 + a.abs() + b.abs()))
    return ~same


def difference(
    one: Mapping[tuple[str, str], Tensor], other: Mapping[tuple[str, str], Tensor], *, exact: bool = False
) -> tuple[str, str, int | None] | None:
    """The first (program, site) whose densities differ, and its first such row; None: they agree."""
    for key in dict.fromkeys([*one, *other]):
        if key not in one or key not in other or one[key].shape != other[key].shape:
            return (*key, None)
        bad = unlike(one[key], other[key], exact=exact)
        if bool(bad.any()):
            row = int(bad.reshape(-1, bad.shape[-1]).any(0).nonzero()[0]) if bad.dim() else None
            return (*key, row)
    return None
