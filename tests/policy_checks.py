"""The checkers behind ``test_policy.py``: each takes a parsed file and returns what is wrong with it, one line each."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

PACKAGE = "pyro_mmvae"

# Lowest first; a file may import only from layers below its own. New subpackages and modules take a place here.
LAYERS = [
    "_optional",
    "columns",
    "datasets",
    "masks",
    "distributions",
    "nn",
    "handlers",
    "fusion",
    "stories",
    "guides",
    "objectives",
    "inference",
    "checks",
    "training",
    "metrics",
    "samplers",
    "plotting",
    "io",
    "vae",
    "models",
    "compat",
    "quickstart",
]
TOP = "(top)"  # pyro_mmvae/__init__.py and __main__.py, above every layer
STRANGERS = ({"objectives", "stories"},)  # never import each other, whatever their order
MODELS_SEEN_BY = {"models", "compat", "quickstart", TOP}
LAZY = {
    "arviz",
    "huggingface_hub",
    "matplotlib",
    "pandas",
    "safetensors",
    "sklearn",
    "torchvision",
    "tqdm",
}
PRINTERS = {"quickstart"}
SEEDS = {
    "torch.manual_seed",
    "torch.random.manual_seed",
    "torch.seed",
    "torch.cuda.manual_seed",
    "torch.cuda.manual_seed_all",
    "numpy.random.seed",
    "random.seed",
    "pyro.set_rng_seed",
    "pyro.util.set_rng_seed",
}
# Files that may seed the global generators: a program of its own, and what restores them afterwards.
SEEDERS = {"pyro_mmvae/quickstart/__main__.py"}
MAX_LINES = 400
ABSOLUTE_PATH = re.compile(r"(?<![\w.)\]}-])/(?:work|tmp|root|home)(?![\w-])")


@dataclass(frozen=True)
class Source:
    """A file of the project: where it is, relative to the root, and what it says."""

    path: str
    text: str

    @classmethod
    def read(cls, root: Path, path: Path) -> Source:
        return cls(path.relative_to(root).as_posix(), path.read_text(encoding="utf-8"))

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def module(self) -> str:
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def layer(self) -> str:
        parts = self.module.split(".")
        return TOP if len(parts) == 1 or parts[1] == "__main__" else parts[1]

    def at(self, node: ast.AST, message: str) -> str:
        return f"{self.path}:{getattr(node, 'lineno', 1)}: {message}"


def imported(source: Source) -> Iterator[tuple[ast.Import | ast.ImportFrom, str, list[str]]]:
    """Every import as (node, absolute module, names); names is empty for ``import module``."""
    parts = source.module.split(".")
    package = parts if source.path.endswith("__init__.py") else parts[:-1]
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name, []
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            yield node, ".".join(base + ([node.module] if node.module else [])), [a.name for a in node.names]


def imported_layers(source: Source) -> Iterator[tuple[ast.AST, str]]:
    """The layers of this package that a file imports from; importing the package itself is the layer TOP."""
    for node, module, names in imported(source):
        head, *rest = module.split(".")
        if head != PACKAGE:
            continue
        if rest:
            yield node, rest[0]
        else:
            yield from ((node, name if name in LAYERS else TOP) for name in names or [TOP])


def layer_faults(source: Source) -> list[str]:
    """Imports point down, ``models`` is seen by the top only, strangers stay apart."""
    own, faults = source.layer, []
    if own != TOP and own not in LAYERS:
        return [source.at(source.tree, f"layer {own!r} has no place in LAYERS")]
    rank = {name: i for i, name in enumerate([*LAYERS, TOP])}
    for node, other in imported_layers(source):
        if other == own and own != TOP:
            continue
        if other not in rank:
            faults.append(source.at(node, f"imports {other!r}, which has no place in LAYERS"))
        elif other == "models" and own not in MODELS_SEEN_BY:
            faults.append(source.at(node, f"{own!r} imports 'models'"))
        elif any({own, other} == pair for pair in STRANGERS):
            faults.append(source.at(node, f"{own!r} imports its stranger {other!r}"))
        elif rank[other] >= rank[own] and own not in (TOP, "quickstart"):
            faults.append(source.at(node, f"{own!r} imports {other!r}, which is not below it"))
    return faults


def cycles(sources: list[Source]) -> list[str]:
    """Files that import each other in a circle, within a layer too."""
    known = {s.module for s in sources}
    graph: dict[str, set[str]] = {}
    for source in sources:
        candidates = [f"{m}.{n}" for _, m, names in imported(source) for n in names]
        # a name that is no module is an attribute of the module it comes from
        targets = {c if c in known else c.rpartition(".")[0] for c in candidates}
        targets |= {m for _, m, names in imported(source) if not names}
        graph[source.module] = {t for t in targets & known if t != source.module}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> list[str]:
        if module in trail:
            return [" -> ".join([*trail[trail.index(module) :], module])]
        if module in done:
            return []
        found = [c for t in sorted(graph[module]) for c in visit(t, (*trail, module))]
        done.add(module)
        return found

    return [f"import cycle: {c}" for module in sorted(graph) for c in visit(module, ())]


def inner_import_faults(source: Source) -> list[str]:
    """Imports inside functions: only of optional or slow packages."""
    functions = [n for n in ast.walk(source.tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)]
    inside = {id(child) for function in functions for child in ast.walk(function)}
    return [
        source.at(node, f"imports {module!r} inside a function")
        for node, module, _ in imported(source)
        if id(node) in inside and module.split(".")[0] not in LAZY
    ]


def eager_import_faults(source: Source) -> list[str]:
    """The reverse: optional or slow packages are not imported when the package is."""
    guarded = [n for n in ast.walk(source.tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    guarded += [n for n in ast.walk(source.tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    inside = {id(child) for block in guarded for child in ast.walk(block)}
    return [
        source.at(node, f"imports {module!r} at the top; import it inside the function that uses it")
        for node, module, _ in imported(source)
        if id(node) not in inside and module.split(".")[0] in LAZY - {"safetensors"} and source.layer not in PRINTERS
    ]


def dotted(source: Source, node: ast.AST) -> str:
    """The full name an expression refers to, its imports resolved: ``np.random.seed`` is ``numpy.random.seed``."""
    names: dict[str, str] = {}
    for statement, module, imports in imported(source):
        for alias in statement.names:
            full = f"{module}.{alias.name}" if imports else alias.name
            names[alias.asname or alias.name.split(".")[0]] = full if alias.asname or imports else full.split(".")[0]
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    return ".".join([names.get(node.id, node.id), *reversed(parts)])


def call_faults(source: Source) -> list[str]:
    """No printing outside programs, no seeding of global generators."""
    faults = []
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Call):
            continue
        name = dotted(source, node.func)
        program = source.layer in PRINTERS or source.path.endswith("__main__.py")
        if name in {"print", "pprint.pprint", "sys.stdout.write"} and not program:
            faults.append(source.at(node, f"calls {name}"))
        if name in SEEDS and source.path not in SEEDERS:
            faults.append(source.at(node, f"seeds a global generator with {name}"))
    return faults


def statement_faults(source: Source) -> list[str]:
    """No bare except, no assert, no nan_to_num."""
    faults = []
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            faults.append(source.at(node, "bare except"))
        if isinstance(node, ast.Assert):
            faults.append(source.at(node, "assert; raise ValueError or TypeError instead"))
        name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
        if isinstance(node, ast.ImportFrom):
            name = next((a.name for a in node.names if a.name.startswith("nan_to_num")), "")
        if name in {"nan_to_num", "nan_to_num_"}:
            faults.append(source.at(node, "nan_to_num hides missing entries; fill them by mask at the door"))
    return faults


def file_faults(source: Source) -> list[str]:
    """A docstring on top, and a length that can be read."""
    lines = source.text.count("\n") + 1
    faults = [] if ast.get_docstring(source.tree) else [source.at(source.tree, "no module docstring")]
    return faults + ([source.at(source.tree, f"{lines} lines, more than {MAX_LINES}")] if lines > MAX_LINES else [])


def future_faults(source: Source) -> list[str]:
    """Annotations are never evaluated: the first import says so in every file that has some."""
    code = [n for n in source.tree.body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
    annotated = [n for n in ast.walk(source.tree) if getattr(n, "annotation", None) or getattr(n, "returns", None)]
    stated = bool(code) and isinstance(code[0], ast.ImportFrom) and code[0].module == "__future__"
    missing = annotated and not stated
    return [source.at(code[0], "does not begin with from __future__ import annotations")] if missing else []


def declared(source: Source) -> list[str] | None:
    """The literal ``__all__`` of a file, None if it has none."""
    for node in source.tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return list(ast.literal_eval(node.value))
    return None


def export_faults(source: Source) -> list[str]:
    """``__all__`` of an ``__init__``: there, without repeats, and naming every public name the file binds."""
    names = declared(source)
    if names is None:
        return [source.at(source.tree, "no __all__")]
    bound: set[str] = set()
    for node in source.tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom) and getattr(node, "module", "") != "__future__":
            bound |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.Assign):
            bound |= {t.id for t in node.targets if isinstance(t, ast.Name)}
    missing = sorted(n for n in bound - set(names) if not n.startswith("_"))
    repeated = sorted({n for n in names if names.count(n) > 1})
    faults = [source.at(source.tree, f"__all__ lacks {missing}")] if missing else []
    return faults + ([source.at(source.tree, f"__all__ repeats {repeated}")] if repeated else [])


def path_faults(source: Source) -> list[str]:
    """No path of somebody's machine."""
    return [
        f"{source.path}:{number}: absolute path: {line.strip()}"
        for number, line in enumerate(source.text.splitlines(), 1)
        if ABSOLUTE_PATH.search(line)
    ]
