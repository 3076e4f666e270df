"""What came of a client's tests, and the table that says so."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from compat.matrix.clients import COMPAT

MATRIX = COMPAT / "MATRIX.md"
# The property of a test that counts for several.
CASES = "cases"
TITLE = """# Clients, and what came of running them

`compat/run` writes this file. It starts this server, and runs each client's tests against it ([README.md](README.md)).

| client | packages | model | what is checked | result |
| --- | --- | --- | --- | --- |
"""


@dataclass(frozen=True)
class Outcome:
    """Counted tests, with the reasons of those that were not simply passed."""

    passed: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    expected: Counter[str] = field(default_factory=Counter)
    failed: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        if self.skipped and not (self.passed or self.failed or self.expected):
            return f"not run: {'; '.join(sorted(self.skipped))}"
        parts = [f"passed {self.passed}"]
        if self.failed:
            parts.append(f"**failed {len(self.failed)}**: {', '.join(self.failed)}")
        parts += [_counted(kind, of) for kind, of in (("xfailed", self.expected), ("skipped", self.skipped)) if of]
        return "; ".join(parts)


@dataclass(frozen=True)
class Line:
    """A line of the table."""

    client: str
    packages: str
    model: str
    checked: str
    result: str

    def __str__(self) -> str:
        cells = (self.client, self.packages, self.model, self.checked, self.result)
        return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"


def read(report: Path) -> Outcome:
    """The outcome that pytest's JUnit report tells of."""
    passed, failed = 0, []
    skipped: Counter[str] = Counter()
    expected: Counter[str] = Counter()
    for case in ET.parse(report).iter("testcase"):
        left_out = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(str(case.get("name")))
        elif left_out is None:
            passed += _cases(case)
        elif left_out.get("type") == "pytest.xfail":
            expected[left_out.get("message", "")] += 1
        else:
            skipped[left_out.get("message", "")] += 1
    return Outcome(passed, skipped, expected, tuple(sorted(failed)))


def write(lines: list[Line], known: list[str], matrix: Path = MATRIX) -> None:
    """Puts lines into the table, in the place of those of the same clients; clients that are gone leave it."""
    rows = _rows(matrix) | {line.client: str(line) for line in lines}
    kept = "".join(f"{rows[name]}\n" for name in sorted(rows) if name in known)
    matrix.write_text(TITLE + kept, encoding="utf-8")


def _cases(case: ET.Element) -> int:
    """How many tests it stands for: one that runs a client's own tests notes their number."""
    noted = case.find(f"properties/property[@name='{CASES}']")
    return 1 if noted is None else int(noted.get("value", ""))


def _rows(matrix: Path) -> dict[str, str]:
    text = matrix.read_text(encoding="utf-8") if matrix.exists() else ""
    lines = [line for line in text.splitlines() if line.startswith("| ")][2:]
    return {line.split(" | ")[0].removeprefix("| "): line for line in lines}


def _counted(kind: str, reasons: Counter[str]) -> str:
    told = (f"{count} times: {reason}" if count > 1 else reason for reason, count in sorted(reasons.items()))
    return f"{kind} {reasons.total()} ({'; '.join(told)})"
