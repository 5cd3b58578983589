"""A method is a composition: its file has a docstring and a constructor that chooses parts, and nothing else.

Each checker is first shown to fail on a fabricated file, then applied to the methods.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

import pyro_mmvae as mm
from tests.policy_checks import Source, dotted, imported

ROOT = Path(__file__).parents[2]
PARTS = {"__init__", "networks", "parts", "shared_private"}  # no methods: what methods are made of
MAX_LINES = 140
OUTSIDE = {"__future__", "collections.abc", "math", "typing", "torch"}
INSIDE = (
    "fusion",
    "guides",
    "masks",
    "models.networks",
    "models.parts",
    "models.shared_private",
    "nn",
    "objectives",
    "stories",
    "vae",
)
COMPUTES = {
    "backward",
    "differentiable_loss",
    "kl_divergence",
    "log_prob",
    "loss",
    "loss_and_grads",
    "per_sample",
    "register_kl",
    "rsample",
    "sample",
}


def methods() -> list[Source]:
    folder = ROOT / "pyro_mmvae" / "models"
    return [Source.read(ROOT, path) for path in sorted(folder.glob("*.py")) if path.stem not in PARTS]


def classes(source: Source) -> list[ast.ClassDef]:
    return [node for node in source.tree.body if isinstance(node, ast.ClassDef)]


def class_faults(source: Source) -> list[str]:
    """One class, of Configurable and MultimodalVAE, whose only content is a docstring and ``__init__``."""
    found = classes(source)
    if len(found) != 1:
        return [source.at(source.tree, f"{len(found)} classes, expected one")]
    own = found[0]
    faults = []
    if [ast.unparse(base) for base in own.bases] != ["Configurable", "MultimodalVAE"] or own.decorator_list:
        faults.append(source.at(own, "expected class Name(Configurable, MultimodalVAE)"))
    if not ast.get_docstring(own):
        faults.append(source.at(own, "no docstring"))
    for node in own.body[1:]:
        if not (isinstance(node, ast.FunctionDef) and node.name == "__init__"):
            faults.append(source.at(node, f"{ast.unparse(node).splitlines()[0]!r}: a method has __init__ alone"))
    return faults


def constructor_faults(source: Source) -> list[str]:
    """The constructor ends in ``super().__init__(...)``, and sets nothing on itself."""
    faults = []
    for own in classes(source):
        for node in own.body:
            if not (isinstance(node, ast.FunctionDef) and node.name == "__init__"):
                continue
            last = ast.unparse(node.body[-1])
            if not last.startswith("super().__init__("):
                faults.append(source.at(node.body[-1], "the constructor does not end in super().__init__(...)"))
            stores = [n for n in ast.walk(node) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)]
            faults += [source.at(n, f"sets {ast.unparse(n)}") for n in stores]
    return faults


def objective_faults(source: Source) -> list[str]:
    """No class, function or call that computes a loss, a density or a draw: those belong to the parts."""
    faults = []
    for node in ast.walk(source.tree):
        name = ""
        if isinstance(node, ast.FunctionDef):
            name = node.name
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else dotted(source, node.func).split(".")[-1]
        if name in COMPUTES:
            faults.append(source.at(node, f"{name}: a method chooses parts, it computes nothing"))
    return faults


def size_faults(source: Source) -> list[str]:
    """A length that is read at once, its docstring counted."""
    lines = source.text.count("\n") + 1
    return [source.at(source.tree, f"{lines} lines, more than {MAX_LINES}")] if lines > MAX_LINES else []


def import_faults(source: Source) -> list[str]:
    """The parts of this package, torch for annotations and constants; no Pyro, no other method."""
    faults = []
    for node, module, _ in imported(source):
        inside = module.removeprefix("pyro_mmvae.")
        known = any(inside == part or inside.startswith(f"{part}.") for part in INSIDE)
        if module not in OUTSIDE and not (module.startswith("pyro_mmvae.") and known):
            faults.append(source.at(node, f"imports {module!r}, which is no part"))
    return faults


GOOD = '''"""Doc."""
from __future__ import annotations
import torch
from pyro_mmvae.models.parts import model_of
from pyro_mmvae.objectives.iwae import Gradient
class X(Configurable, MultimodalVAE):
    """Doc."""
    def __init__(self, encoders):
        def weight(context):
            return 1 / context.count
        super().__init__(model, guide, ELBO(Terms([Term(weight=weight)])))
'''

# Fabricated files: checker, what replaces what in a good file.
BAD: dict[str, tuple[Callable[[Source], list[str]], str, str]] = {
    "two classes": (class_faults, "class X", "class Y: pass\nclass X"),
    "other base": (class_faults, "(Configurable, MultimodalVAE)", "(MVAE)"),
    "no docstring": (class_faults, '    """Doc."""\n    def', "    def"),
    "a method": (class_faults, "    def __init__", "    def loss(self): ...\n    def __init__"),
    "an attribute": (class_faults, "    def __init__", "    beta = 1\n    def __init__"),
    "after the parent": (constructor_faults, "weight=weight)])))\n", "weight=weight)])))\n        self.train()\n"),
    "sets": (constructor_faults, "        super()", "        self.beta = 1\n        super()"),
    "loss function": (objective_faults, "def weight", "def loss"),
    "density": (objective_faults, "1 / context.count", "q.log_prob(z)"),
    "divergence": (objective_faults, "1 / context.count", "kl_divergence(q, p)"),
    "long": (size_faults, '"""Doc."""\nfrom', '"""Doc."""\n' + "\n" * 130 + "from"),
    "pyro": (import_faults, "import torch", "import pyro"),
    "handlers": (import_faults, "models.parts", "handlers"),
    "another method": (import_faults, "models.parts", "models.mvae"),
}


@pytest.mark.parametrize("name", BAD)
def test_checker_can_fail_and_pass(name: str) -> None:
    check, old, new = BAD[name]
    fine, faulty = (Source("pyro_mmvae/models/x.py", text) for text in (GOOD, GOOD.replace(old, new, 1)))
    assert faulty.text != fine.text
    assert check(fine) == []
    found = check(faulty)
    assert found
    assert len(found) == 1 or name == "no docstring"  # the constructor is then taken for the docstring


@pytest.mark.parametrize("check", [class_faults, constructor_faults, objective_faults, size_faults, import_faults])
def test_methods(check: Callable[[Source], list[str]]) -> None:
    assert [fault for source in methods() for fault in check(source)] == []


def test_every_method_has_a_file_and_every_file_a_method() -> None:
    names = {own.name for source in methods() for own in classes(source)}
    assert names == set(mm.models.__all__)
    assert all(getattr(mm, name) is getattr(mm.models, name) for name in names)


def test_what_is_public_is_the_class_alone() -> None:
    for source in methods():
        assert f'__all__ = ["{classes(source)[0].name}"]' in source.text, source.path
