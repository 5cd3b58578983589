"""Every notebook in ``tutorials/`` runs in smoke mode; what is stored with it is a complete run with pictures."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "tutorials").glob("*.ipynb"))


def read(path: Path) -> Any:
    nbformat = pytest.importorskip("nbformat")
    return nbformat.read(path, as_version=4)


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_there_are_tutorials():
    assert [path.name[0] for path in NOTEBOOKS] == [str(i + 1) for i in range(len(NOTEBOOKS))] and NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_form(path):
    """Smoke flag, seed, cleared store in the first cell; what is learned, time, equation; exercises, references."""
    notebook = read(path)
    first = next(cell.source for cell in notebook.cells if cell.cell_type == "code")
    for line in ('smoke_test = "CI" in os.environ', "pyro.set_rng_seed(", "pyro.clear_param_store()"):
        assert line in first
    opening, closing = notebook.cells[0].source, notebook.cells[-1].source
    assert all(part in opening for part in ("**You learn**", "**Time:**", "$$"))
    assert "## Exercises" in closing and "## References" in closing


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs(path):
    """In order, without errors or warnings, with pictures; nothing of the machine it ran on."""
    notebook = read(path)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    found = outputs(notebook)
    assert [o for o in found if o.output_type == "error" or o.get("name") == "stderr"] == []
    assert sum("image/png" in o.get("data", {}) for o in found) >= 3
    text = path.read_text(encoding="utf-8")
    assert not any(f"/{folder}/" in text for folder in ("home", "root", "tmp", "work"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path):
    """All cells, in smoke mode, in a kernel of their own."""
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = read(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the client, about its event loop; the kernel is another process
        client = nbclient.NotebookClient(
            notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
        )
        client.execute(env={**os.environ, "CI": "1", "OMP_NUM_THREADS": "1"})
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
