"""Importing packages that the library uses if they are there.

Lowest layer: nothing of the library's is imported.
"""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["optional_import"]


def optional_import(name: str, extra: str | None = None) -> ModuleType:
    """
    Import a package where it is used, with an error that tells "not installed" from "failed to load".

    Example::

        >>> optional_import("json").dumps([1])
        '[1]'

    :param name: the module, e.g. ``"huggingface_hub"``.
    :param extra: the extra of this package that brings it; None: the package's own name is what to install.
    :raises ImportError: if it is not installed, or is and fails to load; the message says which.
    """
    package = name.partition(".")[0]
    wanted = package if extra is None else f"pyro-mmvae[{extra}]"
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == package:
            raise ImportError(f"{package} is not installed. Fix: pip install '{wanted}'.", name=package) from error
        raise _failed(name, wanted, error) from error
    except Exception as error:  # a broken binary raises anything: OSError, RuntimeError, AttributeError
        raise _failed(name, wanted, error) from error


def _failed(name: str, wanted: str, error: Exception) -> ImportError:
    return ImportError(
        f"{name} is installed but failed to load: {type(error).__name__}: {error}. Fix: a build that fits the rest "
        f"of the environment, e.g. pip install --force-reinstall '{wanted}'.",
        name=name,
    )
