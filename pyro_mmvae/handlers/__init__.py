"""Pyro messengers, each usable alone with stock Pyro: a Messenger and a verb.

Layer: handlers, above distributions.
"""

from pyro_mmvae.handlers.marginalize_missing import MarginalizeMissingMessenger, marginalize_missing
from pyro_mmvae.handlers.noise import NoiseMessenger, noise
from pyro_mmvae.handlers.observe import ObserveMessenger, observe
from pyro_mmvae.handlers.plates import WithinPlate
from pyro_mmvae.handlers.registration import Registered, unregistered
from pyro_mmvae.handlers.replace_prior import ReplacePriorMessenger, replace_prior
from pyro_mmvae.handlers.replay import ReplayMessenger, replay
from pyro_mmvae.handlers.rescale import AnnealMessenger, RescaleMessenger, anneal, rescale
from pyro_mmvae.handlers.score import ScoreMessenger, Target, score, target_of

__all__ = [
    "AnnealMessenger",
    "MarginalizeMissingMessenger",
    "NoiseMessenger",
    "ObserveMessenger",
    "Registered",
    "ReplacePriorMessenger",
    "ReplayMessenger",
    "RescaleMessenger",
    "ScoreMessenger",
    "Target",
    "WithinPlate",
    "anneal",
    "marginalize_missing",
    "noise",
    "observe",
    "replace_prior",
    "replay",
    "rescale",
    "score",
    "target_of",
    "unregistered",
]
