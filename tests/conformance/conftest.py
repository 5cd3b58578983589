"""Every law runs for every case; at the end a table says which holds.

Test layer: a test marked `law` takes a `case`; a case may name a law it is exempt from, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.conformance.cases import CASES, Case
from tests.conformance.placed import noise_of_any_family as noise_of_any_family

SIGNS = {"passed": "✓", "skipped": "-", "failed": "✗"}


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line("markers", "law(name): the law of the design that a test checks for every case")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with an argument ``case`` runs for all cases."""
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", CASES, ids=lambda case: case.name)


@pytest.fixture(autouse=True)
def exempt(request: pytest.FixtureRequest) -> None:
    """Skip a law that a case is exempt from, and tell the table which law and case the test belongs to."""
    marker = request.node.get_closest_marker("law")
    if marker is None or not hasattr(request.node, "callspec"):
        return
    case: Case = request.node.callspec.params["case"]
    law = marker.args[0]
    request.node.user_properties += [("law", law), ("case", case.name)]
    if law in case.skips:
        pytest.skip(case.skips[law])


@pytest.fixture(autouse=True)
def given_noise(noise_of_any_family: None) -> None:
    """Every law may give noise to any family."""


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    """Double precision as the default: closed forms hold to rounding."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table: ✓ holds, ✗ fails, - exempt (reasons below)."""
    found: dict[str, dict[str, str]] = {}
    reasons: dict[str, list[str]] = {}
    laws: dict[str, None] = {}
    for outcome in ("passed", "skipped", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            own = dict(getattr(report, "user_properties", []))
            if "law" not in own or "case" not in own:
                continue
            laws.setdefault(own["law"])
            sign = SIGNS.get(outcome, "✗")
            row = found.setdefault(own["case"], {})
            row[own["law"]] = sign if sign != "✓" or own["law"] not in row else row[own["law"]]
            if outcome == "skipped":
                reason = report.longrepr[2].removeprefix("Skipped: ")
                reasons.setdefault(reason, []).append(f"{own['case']} ({own['law']})")
    if not found:
        return
    terminalreporter.section("methods x laws")
    for line in _table(found, list(laws)):
        terminalreporter.write_line(line)
    for reason, where in reasons.items():
        terminalreporter.write_line(f"- {', '.join(dict.fromkeys(where))}: {reason}")


def _table(found: dict[str, dict[str, str]], laws: list[str]) -> list[str]:
    """Numbered columns, their names below."""
    order = [case.name for case in CASES if case.name in found]
    width = max(map(len, order))
    head = " " * width + "".join(f"{i:>4}" for i in range(1, len(laws) + 1))
    rows = [f"{name:<{width}}" + "".join(f"{found[name].get(law, ' '):>4}" for law in laws) for name in order]
    return [head, *rows, ", ".join(f"{i} {law}" for i, law in enumerate(laws, 1))]
