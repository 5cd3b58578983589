"""Laws of what lies around the programs: devices and dtypes, inputs, random and global state.

Layer: checks.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pyro_mmvae.checks.context import Context
from pyro_mmvae.checks.report import Finding, broken, holds, skipped
from pyro_mmvae.checks.runs import blamed, copies, modality_of, sample_sites, unlike
from pyro_mmvae.checks.state import Ambient, Snapshot, seeded
from pyro_mmvae.distributions import stand_ins
from pyro_mmvae.handlers.registration import unregistered

__all__ = ["devices_and_dtypes_agree", "state_left_as_found"]


def devices_and_dtypes_agree(context: Context) -> Finding:
    """Parameters, floating data, draws and densities share one device and one dtype."""
    tensors: list[tuple[str, str, Tensor]] = [("parameter", k, p) for k, p in context.parameters.items()]
    tensors += [("modality", k, x) for k, x in context.data.items()]
    if context.problem is None:
        for program, found in (("model", context.model_alone), ("guide", context.guide_alone)):
            tensors += [(program, name, site["value"]) for name, site in sample_sites(found).items()]
    first = next(((kind, k, x) for kind, k, x in tensors if x.is_floating_point()), None)
    if first is None:
        return skipped("nothing is floating")
    for kind, name, x in tensors:
        what = "device" if x.device != first[2].device else "dtype"
        if x.device == first[2].device and (not x.is_floating_point() or x.dtype == first[2].dtype):
            continue
        have, want = getattr(x, what), getattr(first[2], what)
        message = f"{what} {have}, but {first[1]!r} has {want}"
        fix = f"x.to({want!s})." if kind != "parameter" else f"module.to({want!s})."
        if kind in ("model", "guide"):
            sites = sample_sites(context.model_alone if kind == "model" else context.guide_alone)
            m = modality_of(name, sites[name], context.names)
            fix = "make tensors like the inputs, x.new_zeros(...)."
            return broken(message, fix, program=kind, site=name, modality=m)
        parameter, modality = (name, None) if kind == "parameter" else (None, name)
        return broken(message, fix, parameter=parameter, modality=modality)
    return holds(f"{first[2].device}, {str(first[2].dtype).removeprefix('torch.')}")


def state_left_as_found(context: Context) -> Finding:
    """Programs change neither their inputs, nor parameters, modes, random or global state."""
    for name, program in (("guide", context.guide), ("model", context.model)):
        ends = []
        for seed in (context.seed, context.seed + 1):
            data, masks = copies(context.data), copies(context.masks)
            kept, before = Snapshot(context.networks), context.ambient
            before.restore()
            around = Ambient()
            seeded(seed)
            with blamed(name), unregistered(), stand_ins():
                program(data, masks)
            ends.append(torch.get_rng_state())
            changed = [*_changed("data", context.data, data), *_changed("obs_mask", context.masks, masks)]
            changed += [*kept.changes(), *around.changes()]
            around.restore()
            kept.restore()
            if changed:
                key = next((k for k in context.data if f"data[{k!r}]" in changed[0]), None)
                fix = "work on copies: torch.where, masked_fill or x.clone(), not x[...] = and methods ending in _."
                if key is None and "obs_mask" not in changed[0]:
                    fix = "set modes, dtypes and gradients outside of the program."
                return broken(f"it changes {'; '.join(changed[:3])}", fix, program=name, modality=key)
        if torch.equal(*ends):
            return broken("it sets the seed: every call draws the same numbers", "seed once, before training.",
                          program=name)  # fmt: skip
    return holds()


def _changed(what: str, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    keys = set(before) ^ set(after)
    out = [f"the keys of {what}: {sorted(keys)}"] if keys else []
    for name, x in before.items():
        if name in after and (x.shape != after[name].shape or not _same(x, after[name])):
            out.append(f"{what}[{name!r}] in place")
    return out


def _same(a: Tensor, b: Tensor) -> bool:
    return not bool((unlike(a, b, exact=True) & ~((a != a) & (b != b))).any())
