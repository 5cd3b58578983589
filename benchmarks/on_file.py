"""Results of runs that are on file already."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

__all__ = ["on_file"]


def on_file(path: Path, run: Any) -> dict[str, Any] | None:
    """
    What a file holds, if the run that it keeps had the same settings.

    :param run: a dataclass of settings; the file has them under "run".
    """
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found if found.get("run") == asdict(run) else None
