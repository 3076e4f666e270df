"""The table at the end of a run, and each fault with the line that shows it again."""

from __future__ import annotations

from collections.abc import Sequence

from fuzz.findings import Finding
from fuzz.session import Session


def table(session: Session) -> str:
    totals, references = session.totals, session.references
    early, late = session.sizes()
    freeze = totals.longest_freeze
    count = sum(totals.requests.values())
    last = session.watcher.samples[-1:]
    lines = ["requests by kind and status:"]
    for kind in sorted({kind for kind, _ in totals.requests}):
        by_status = sorted((status, n) for (each, status), n in totals.requests.items() if each == kind)
        lines.append(f"  {kind:12} " + "  ".join(f"{status}: {n}" for status, n in by_status))
    lines += [
        f"deaths {totals.deaths}, restarts {totals.restarts}, "
        f"5xx {sum(n for (_, status), n in totals.requests.items() if status.startswith('5'))}, kinds of fault "
        f"{len(session.findings.kinds)}",
        f"longest freeze {freeze.took:.2f} s ({totals.freezing}; the asker itself was late by {freeze.late:.2f} s)",
        f"slowest request {totals.slowest:.1f} s ({totals.slowest_case}), bound {session.bound:.0f} s",
        f"resident {early >> 20} MiB warm, {late >> 20} MiB at the end"
        f", largest growth {totals.largest_growth >> 20} MiB ({totals.growing})"
        + (f"; threads {last[0].threads}, open files {last[0].files}" if last else ""),
        f"log {totals.log_bytes} bytes, {totals.log_bytes / max(count, 1):.0f} a request",
        f"neighbours' answers compared {references.compared}, slowest {references.slowest:.1f} s",
    ]
    return "\n".join(lines)


def told(findings: Sequence[Finding], url: str) -> str:
    return "\n\n".join(
        f"{found.what[:600]}\n    {found.count} times, by {found.smallest.label}\n    {found.smallest.curl(url)}"
        for found in findings
    )
