"""What a check found: one finding per law, and the table of all of them.

Layer: checks.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Literal

__all__ = ["Finding", "Report", "broken", "holds", "note", "skipped"]

Status = Literal["holds", "broken", "note", "not applicable"]


@dataclass(frozen=True)
class Finding:
    """
    What one law says about a pair of programs.

    :ivar law: name of the law.
    :ivar status: "holds"; "broken"; "note" for what is allowed but should be known; "not applicable".
    :ivar message: what was seen, or why the law does not apply.
    :ivar fix: what to do, one line.
    :ivar program: "model", "guide" or "objective".
    :ivar site: the sample site.
    :ivar modality: the modality.
    :ivar parameter: the parameter.
    :ivar row: index of the row, in the data as they were given.
    :ivar shape: the shape that was found.
    """

    status: Status
    message: str = ""
    fix: str = ""
    program: str | None = None
    site: str | None = None
    modality: str | None = None
    parameter: str | None = None
    row: int | None = None
    shape: tuple[int, ...] | None = None
    law: str = ""

    @property
    def where(self) -> str:
        """Program, site, modality, parameter, row and shape, as far as they are known."""
        parts = [] if self.program is None else [self.program]
        parts += [f"{k} {v!r}" for k in ("site", "modality", "parameter") if (v := getattr(self, k)) is not None]
        parts += [f"{k} {v}" for k in ("row", "shape") if (v := getattr(self, k)) is not None]
        return ", ".join(parts)

    def __str__(self) -> str:
        where = f" [{self.where}]" if self.where else ""
        said = f": {self.message}" if self.message else ""
        fix = f" Fix: {self.fix}" if self.fix else ""
        return f"{self.law}{where}{said}{fix}"


def holds(message: str = "") -> Finding:
    """The law holds."""
    return Finding("holds", message)


def broken(
    message: str,
    fix: str,
    *,
    program: str | None = None,
    site: str | None = None,
    modality: str | None = None,
    parameter: str | None = None,
    row: int | None = None,
    shape: tuple[int, ...] | None = None,
) -> Finding:
    """The law is broken, and where. An error that says its own way out keeps it."""
    message, _, own = message.partition(" Fix: ")
    fix = own if own else fix
    return Finding("broken", message, fix, program, site, modality, parameter, row, shape)


def note(message: str, fix: str = "", **where: str | None) -> Finding:
    """Nothing is wrong, but it should be known."""
    return Finding("note", message, fix, **where)  # type: ignore[arg-type]


def skipped(why: str) -> Finding:
    """The law says nothing about this pair."""
    return Finding("not applicable", why)


@dataclass(frozen=True)
class Report:
    """
    The findings of :func:`pyro_mmvae.check`, one per law. True if no law is broken; printed as a table.

    Example::

        >>> report = Report((Finding("holds", law="sites match"), Finding("broken", "no", "yes", "guide", law="rows")))
        >>> bool(report), [finding.law for finding in report.broken]
        (False, ['rows'])
        >>> print(report)
        holds   sites match
        BROKEN  rows         guide: no Fix: yes

    :ivar findings: one per law, in the order in which they were checked.
    """

    findings: tuple[Finding, ...]

    @property
    def broken(self) -> tuple[Finding, ...]:
        """The laws that do not hold."""
        return tuple(f for f in self.findings if f.status == "broken")

    @property
    def notes(self) -> tuple[Finding, ...]:
        """What is allowed but should be known."""
        return tuple(f for f in self.findings if f.status == "note")

    def __getitem__(self, law: str) -> Finding:
        """
        The finding of one law.

        :raises KeyError: if there is no such law.
        """
        for finding in self.findings:
            if finding.law == law:
                return finding
        raise KeyError(f"{law!r} is no law; laws are {[f.law for f in self.findings]}.")

    def __bool__(self) -> bool:
        return not self.broken

    def __str__(self) -> str:
        width = max((len(f.law) for f in self.findings), default=0)
        return "\n".join(f"{_sign(f):<7} {f.law:<{width}}  {_said(f)}".rstrip() for f in self.findings)

    def _repr_html_(self) -> str:
        cells = [(_sign(f), f.law, f.where, f.message, f.fix) for f in self.findings]
        rows = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in cells)
        head = "".join(f"<th>{c}</th>" for c in ("", "law", "where", "what", "fix"))
        return f"<table><tr>{head}</tr>{rows}</table>"

    def raise_if_broken(self) -> None:
        """
        Do nothing, or raise.

        :raises ValueError: if a law is broken, naming each with its place and fix.
        """
        if self.broken:
            raise ValueError("These laws are broken:\n" + "\n".join(f"{i}. {f}" for i, f in enumerate(self.broken, 1)))


def _sign(finding: Finding) -> str:
    return {"holds": "holds", "broken": "BROKEN", "note": "note", "not applicable": "-"}[finding.status]


def _said(finding: Finding) -> str:
    said = ": ".join(part for part in (finding.where, finding.message) if part)
    return f"{said} Fix: {finding.fix}" if finding.fix else said
