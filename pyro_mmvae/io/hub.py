"""Models on the Hugging Face Hub: the same folder, with a model card.

Layer: io.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pyro_mmvae._optional import optional_import
from pyro_mmvae.io.describe import model_of
from pyro_mmvae.io.files import CONFIG, WEIGHTS
from pyro_mmvae.io.load import load, save

__all__ = ["from_pretrained", "model_card", "push_to_hub"]


def push_to_hub(vae: Any, repo: str, *, private: bool = False, message: str = "Upload a pyro_mmvae model") -> str:
    """
    Save a model, with a model card, into a repository of the Hugging Face Hub, which is made if need be.

    Needs the extra ``hub``; you are logged in as ``huggingface_hub`` wants it. The repository's README.md is replaced.

    :param repo: ``"name"`` or ``"owner/name"``.
    :param private: whether a new repository is private.
    :param message: of the commit.
    :return: the repository's full name, for :func:`from_pretrained`.
    :raises ImportError: if ``huggingface_hub`` is not installed, or fails to load.
    """
    hub = optional_import("huggingface_hub", "hub")
    api = hub.HfApi()
    with TemporaryDirectory() as folder:
        save(vae, folder)
        name = str(api.create_repo(repo, private=private, exist_ok=True).repo_id)
        (Path(folder) / "README.md").write_text(model_card(vae, name), encoding="utf-8")
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=message)
    return name


def from_pretrained(repo: str, *, revision: str | None = None, **given: Any) -> Any:
    """
    The model that :func:`push_to_hub` uploaded; two files are fetched, nothing of theirs is executed.

    :param repo: ``"owner/name"``.
    :param revision: branch, tag or commit; default: the newest.
    :param given: what :func:`load` takes besides the path, e.g. ``story`` and ``guide``.
    :raises ImportError: if ``huggingface_hub`` is not installed, or fails to load.
    """
    hub = optional_import("huggingface_hub", "hub")
    folder = hub.snapshot_download(repo, revision=revision, allow_patterns=[CONFIG, WEIGHTS])
    return load(folder, **given)


def model_card(vae: Any, repo: str) -> str:
    """
    README.md of a model: modalities, likelihoods, latents, objective, assumption on missingness, how to load it.

    :param repo: where it will be.
    """
    sites = model_of(vae.model)
    custom = vae.config.get("model", {}).get("was")
    given = "" if custom is None else ", story=story, guide=guide"
    parts = [
        "---\nlibrary_name: pyro_mmvae\ntags:\n- pyro\n- multimodal\n- variational-autoencoder\n- missing-data\n---",
        f"# {repo}",
        f"A multimodal VAE, `{type(vae).__name__}`, made with pyro_mmvae"
        + ("." if custom is None else f", with a story of its own ({custom})."),
        f"## Modalities\n\n{_modalities(sites)}",
        f"## Latents\n\n{_latents(sites)}",
        f"## Objective\n\n{_objective(vae.objective)}",
        "## Missing data\n\nAny modality of a sample, or features of one, may be missing. Only what is observed is "
        "scored, which assumes that values are missing at random (MAR, which includes completely at random): given "
        "what is observed, whether an entry is missing does not depend on its value. Where that fails, the story has "
        "to model the mask.",
        f"## Use\n\n```python\nimport pyro_mmvae as mm\n\nvae = mm.from_pretrained({repo!r}{given})\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _modalities(sites: dict[str, Any]) -> str:
    if not sites["observed"]:
        return "Those of the program it was made with."
    if sites["sites"] is None:
        return ", ".join(sites["modalities"]) + f"; covariates: {', '.join(sites['covariates'])}."
    rows = [
        f"| {m.replace('|', chr(92) + '|')} | {tuple(site['event_shape'])} | {site['likelihood']} |"
        for m, site in sites["sites"].items()
    ]
    return "\n".join(["| modality | event shape | likelihood |", "|---|---|---|", *rows])


def _latents(sites: dict[str, Any]) -> str:
    if sites.get("latents") is None:
        return "Those of its story."
    owner = sites["private"]
    ends = {z: f", private to {owner[z]}" if z in owner else "" for z in sites["latents"]}
    return "\n".join(f"- `{z}` {tuple(shape)}{ends[z]}" for z, shape in sites["latents"].items())


def _objective(objective: Any) -> str:
    options = getattr(objective, "extra_repr", str)()
    lines = [f"`{type(objective).__name__}({options})`"]
    terms = getattr(objective, "terms", None)
    lines += [] if terms is None else [f"- {term.describe()}" for term in terms.terms]
    return "\n\n".join([lines[0], "\n".join(lines[1:])]).strip()
