"""What the source tree promises: layers, public names, docstrings, sizes, import time.

Each checker is first shown to fail on a fabricated file, then applied to the tree.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

import pyro_mmvae
from tests import policy_checks as policy
from tests.policy_checks import Source

ROOT = Path(__file__).parents[1]
FOLDERS = ("pyro_mmvae", "tests", "benchmarks", "tools")


def sources(*folders: str, pattern: str = "*.py") -> list[Source]:
    found = sorted(path for folder in folders for path in (ROOT / folder).rglob(pattern))
    return [Source.read(ROOT, path) for path in found if path.is_file() and "__pycache__" not in path.parts]


PACKAGE = sources("pyro_mmvae")
INITS = [s for s in PACKAGE if s.path.endswith("/__init__.py")]


def make(text: str, path: str = "pyro_mmvae/handlers/score.py") -> Source:
    return Source(path, text)


# Fabricated files: checker, source with the fault, the same without it.
CASES: dict[str, tuple[Callable[[Source], list[str]], Source, Source]] = {
    "upward": (
        policy.layer_faults,
        make("from pyro_mmvae.guides import Product"),
        make("from pyro_mmvae.masks import complement"),
    ),
    "upward relative": (
        policy.layer_faults,
        make("from ..guides.product import Product"),
        make("from ..masks import complement\nfrom . import observe\nfrom .observe import observe"),
    ),
    "whole package": (
        policy.layer_faults,
        make("import pyro_mmvae as mm"),
        make("import pyro_mmvae.masks"),
    ),
    "module of the package": (
        policy.layer_faults,
        make("from pyro_mmvae import guides"),
        make("from pyro_mmvae import masks"),
    ),
    "inside TYPE_CHECKING": (
        policy.layer_faults,
        make("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pyro_mmvae.vae import MultimodalVAE"),
        make("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from torch import Tensor"),
    ),
    "models": (
        policy.layer_faults,
        make("from pyro_mmvae.models import MVAE", "pyro_mmvae/io.py"),
        make("from pyro_mmvae.models import MVAE", "pyro_mmvae/quickstart.py"),
    ),
    "models by a higher layer": (
        policy.layer_faults,
        make("from pyro_mmvae.handlers import score\nfrom .models import MVAE", "pyro_mmvae/vae.py"),
        make("from .models import MVAE", "pyro_mmvae/__init__.py"),
    ),
    "strangers": (
        policy.layer_faults,
        make("from pyro_mmvae.stories import Shared", "pyro_mmvae/objectives/elbo.py"),
        make("from pyro_mmvae.stories import Shared", "pyro_mmvae/guides/product.py"),
    ),
    "unknown layer": (
        policy.layer_faults,
        make("", "pyro_mmvae/helpers/__init__.py"),
        make("", "pyro_mmvae/__init__.py"),
    ),
    "import of an unknown layer": (
        policy.layer_faults,
        make("from pyro_mmvae.helpers import thing"),
        make("from torch import Tensor"),
    ),
    "import in a function": (
        policy.inner_import_faults,
        make("def f():\n    from pyro_mmvae import masks"),
        make("def f():\n    import matplotlib.pyplot as plt\n    from sklearn.svm import SVC"),
    ),
    "slow import at the top": (
        policy.eager_import_faults,
        make("import matplotlib.pyplot as plt"),
        make("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import arviz\ndef f():\n    import arviz"),
    ),
    "print": (policy.call_faults, make("print(1)"), make("print(1)", "pyro_mmvae/quickstart.py")),
    "pprint": (policy.call_faults, make("from pprint import pprint as p\np(1)"), make("x.print(1)")),
    "torch seed": (
        policy.call_faults,
        make("import torch\ntorch.manual_seed(0)"),
        make("import torch\ng = torch.Generator().manual_seed(0)\ng.manual_seed(1)"),
    ),
    "numpy seed": (
        policy.call_faults,
        make("import numpy as np\nnp.random.seed(0)"),
        make("import numpy as np\nr = np.random.default_rng(0)"),
    ),
    "imported seed": (
        policy.call_faults,
        make("from torch import manual_seed as s\ns(0)"),
        make("import pyro\npyro.set_rng_seed(0)", "pyro_mmvae/quickstart/__main__.py"),
    ),
    "bare except": (
        policy.statement_faults,
        make("try:\n    f()\nexcept:\n    pass"),
        make("try:\n    f()\nexcept ValueError:\n    pass"),
    ),
    "assert": (policy.statement_faults, make("assert x"), make("if not x:\n    raise ValueError('x')")),
    "nan_to_num": (policy.statement_faults, make("x.nan_to_num_(0)"), make("'nan_to_num'")),
    "nan_to_num imported": (
        policy.statement_faults,
        make("from torch import nan_to_num as clean"),
        make("from torch import where"),
    ),
    "no docstring": (policy.file_faults, make("x = 1"), make('"""Doc."""')),
    "long file": (
        policy.file_faults,
        make('"""Doc."""' + "\n" * 400),
        make('"""Doc."""' + "\n" * 399),
    ),
    "no future import": (
        policy.future_faults,
        make('"""Doc."""\nimport torch\nx: int = 1'),
        make('"""Doc."""\nfrom __future__ import annotations\nx: int = 1'),
    ),
    "no __all__": (policy.export_faults, make("x = 1"), make("__all__ = []")),
    "unlisted name": (
        policy.export_faults,
        make("from .a import f, g\n__all__ = ['f']"),
        make("from __future__ import annotations\nfrom .a import f, _g\n__all__ = ['f']"),
    ),
    "repeated name": (policy.export_faults, make("__all__ = ['f', 'f']"), make("__all__ = ['f']")),
    "absolute path": (
        policy.path_faults,
        make("p = '/" + "tmp/x'"),
        make("https://x.org/home/x and models/root/tmp, ./tmp, a/work"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_checker_can_fail_and_pass(name):
    check, faulty, fine = CASES[name]
    assert len(check(faulty)) == 1
    assert check(fine) == []


def test_cycle_is_found_and_a_chain_is_none():
    a = make("from pyro_mmvae.nn.b import f", "pyro_mmvae/nn/a.py")
    b = make("from .c import f", "pyro_mmvae/nn/b.py")
    c = make("from pyro_mmvae.nn import a", "pyro_mmvae/nn/c.py")
    assert len(policy.cycles([a, b, c])) == 1
    assert policy.cycles([a, b, make("from torch import a", "pyro_mmvae/nn/c.py")]) == []


@pytest.mark.parametrize(
    "check",
    [
        policy.layer_faults,
        policy.inner_import_faults,
        policy.eager_import_faults,
        policy.call_faults,
        policy.statement_faults,
    ],
)
def test_package(check):
    assert [fault for source in PACKAGE for fault in check(source)] == []


def test_no_import_cycles():
    assert policy.cycles(PACKAGE) == []


@pytest.mark.parametrize("check", [policy.file_faults, policy.future_faults])
def test_every_python_file(check):
    files = [s for s in sources(*FOLDERS) if s.text.strip()]
    assert [fault for source in files for fault in check(source)] == []


def test_every_folder_of_the_package_is_a_package():
    """A folder without ``__init__.py`` would import silently, with nothing in it, and not be installed."""
    assert sorted({str(Path(s.path).parent) for s in PACKAGE} - {str(Path(s.path).parent) for s in INITS}) == []


def test_exports_are_declared():
    assert [fault for source in INITS for fault in policy.export_faults(source)] == []


def exports() -> list[tuple[str, str]]:
    """Every (module, name) that the package declares public, in packages and in single-file layers alike."""
    return [(s.module, name) for s in PACKAGE for name in policy.declared(s) or []]


def test_exports_exist():
    modules = {module: importlib.import_module(module) for module, _ in exports()}
    assert [f"{module}.{name}" for module, name in exports() if not hasattr(modules[module], name)] == []


def undocumented(thing: object, name: str) -> list[str]:
    """Public functions, classes and their public methods without a docstring; an override may inherit its base's."""
    if inspect.isclass(thing):
        own = thing.__dict__.get("__doc__") or ""
        # a dataclass without docstring is given its signature for one
        found = [name] if not own or own.startswith(f"{thing.__name__}(") else []
        kinds = (types.FunctionType, property, classmethod, staticmethod)
        methods = [k for k, v in vars(thing).items() if isinstance(v, kinds) and not k.startswith("_")]
        documented = {k for base in thing.__mro__ for k, v in vars(base).items() if getattr(v, "__doc__", None)}
        return found + [f"{name}.{method}" for method in methods if method not in documented]
    return [name] if inspect.isfunction(thing) and not inspect.getdoc(thing) else []


def test_undocumented_is_found():
    class Bare:
        def method(self): ...

        @property
        def value(self): ...

    class Documented:
        """Doc."""

        def method(self):
            """Doc."""

    class Inherits(Documented):
        """Doc."""

        def method(self): ...

    assert undocumented(Bare, "Bare") == ["Bare", "Bare.method", "Bare.value"]
    assert undocumented(Documented, "Documented") == undocumented(Inherits, "Inherits") == []
    assert undocumented(lambda: None, "f") == ["f"]


def test_public_names_have_docstrings():
    things = {f"{module}.{name}": getattr(importlib.import_module(module), name) for module, name in exports()}
    assert [fault for name, thing in things.items() for fault in undocumented(thing, name)] == []


def latest_version(changelog: str) -> str | None:
    found = re.search(r"^## \[(\d[^\]]*)\] - \d{4}-\d{2}-\d{2}$", changelog, re.M)
    return found.group(1) if found else None


def test_version_is_the_latest_in_the_changelog():
    assert latest_version("## [Unreleased]\n\n## [0.2.0] - 2027-01-01\n\n## [0.1.0] - 2026-01-01\n") == "0.2.0"
    assert latest_version("## [Unreleased]\n") is None
    assert latest_version((ROOT / "CHANGELOG.md").read_text()) == pyro_mmvae.__version__


def has_smoke_flag(notebook: str) -> bool:
    """The first code cell says ``smoke_test = "CI" in os.environ``."""
    code = ["".join(cell["source"]) for cell in json.loads(notebook)["cells"] if cell["cell_type"] == "code"]
    return bool(code) and re.search(r"^smoke_test = [\"']CI[\"'] in os\.environ$", code[0], re.M) is not None


def test_every_notebook_has_a_smoke_flag():
    cell = {"cell_type": "code", "source": ["import os\n", 'smoke_test = "CI" in os.environ']}
    assert has_smoke_flag(json.dumps({"cells": [{"cell_type": "markdown", "source": "#"}, cell]}))
    assert not has_smoke_flag(json.dumps({"cells": [{**cell, "source": "import os"}, cell]}))
    notebooks = sources("tutorials", pattern="*.ipynb")
    assert [s.path for s in notebooks if not has_smoke_flag(s.text)] == []


def test_no_absolute_paths():
    folders = ("pyro_mmvae", "docs/source", "benchmarks", "tutorials", "tools")
    suffixes = (".py", ".md", ".rst", ".ipynb", ".json")
    files = [s for suffix in suffixes for s in sources(*folders, pattern=f"*{suffix}")]
    files += [Source.read(ROOT, path) for path in (*ROOT.glob("*.md"), *ROOT.glob("*.cfg"), *ROOT.glob("*.toml"))]
    assert [fault for source in files for fault in policy.path_faults(source)] == []


def test_every_subpackage_has_a_page_in_the_docs():
    layers = {s.layer for s in PACKAGE} - {policy.TOP, "quickstart"}
    pages = {path.stem for path in (ROOT / "docs" / "source").rglob("*.*") if path.suffix in (".md", ".rst")}
    assert sorted(name for name in layers - pages if not name.startswith("_")) == []


IMPORT = """
import sys, time
start = time.perf_counter()
import pyro
middle = time.perf_counter()
before = set(sys.modules)
import pyro_mmvae
end = time.perf_counter()
heavy = {"arviz", "matplotlib", "sklearn", "torchvision", "tqdm", "pandas"}
print(middle - start, end - middle, *sorted(heavy & set(sys.modules) - before))
"""


def test_import_is_light():
    """Importing the package costs less than importing Pyro does, and loads none of the heavy packages."""
    command = [sys.executable, "-c", IMPORT]
    lines = [subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() for _ in range(3)]
    assert lines[0][2:] == []
    pyro_seconds, own_seconds = (min(float(line[i]) for line in lines) for i in (0, 1))
    assert own_seconds < pyro_seconds, f"pyro {pyro_seconds:.2f} s, pyro_mmvae on top {own_seconds:.2f} s"
