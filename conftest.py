"""The package's doctests keep the rules of the tests."""

from __future__ import annotations

from tests.conftest import clean_room, pytest_configure

__all__ = ["clean_room", "pytest_configure"]
