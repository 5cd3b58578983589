"""Optional packages: absent, broken and present ones are told apart."""

from __future__ import annotations

import json

import pytest

from pyro_mmvae._optional import optional_import


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Packages that fail to load, each in its way."""
    (tmp_path / "broken_binary.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    (tmp_path / "lacks_other.py").write_text("import surely_not_installed_anywhere")
    (tmp_path / "whole.py").write_text("answer = 42")
    monkeypatch.syspath_prepend(tmp_path)


def test_present(packages):
    assert optional_import("json") is json
    assert optional_import("whole", "vision").answer == 42


def test_not_installed_names_the_extra():
    with pytest.raises(ImportError, match=r"^absent_thing is not installed. Fix: pip install 'pyro-mmvae\[hub\]'.$"):
        optional_import("absent_thing.part", "hub")
    with pytest.raises(ImportError, match=r"pip install 'absent_thing'"):
        optional_import("absent_thing")


@pytest.mark.parametrize(("name", "cause"), [("broken_binary", "RuntimeError: oper"), ("lacks_other", "surely_not")])
def test_failed_to_load_names_the_cause(packages, name, cause):
    with pytest.raises(ImportError, match=f"{name} is installed but failed to load: .*{cause}.*pyro-mmvae\\[vision\\]"):
        optional_import(name, "vision")
