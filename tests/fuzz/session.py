"""One server under fire: sends requests, judges what comes of them, and starts the server anew where it is gone."""

from __future__ import annotations

import http.client
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzz import verdict
from fuzz.case import Case
from fuzz.exchange import Exchange, exchanged
from fuzz.findings import Findings, traceback
from fuzz.process import ServerProcess
from fuzz.references import References
from fuzz.watcher import Pulse, Watcher, settled

# On two cores with nothing else to do; everything is stretched by how slow this machine is beside that.
NOMINAL_REFERENCES = 1.5
SLOWEST = 5.0
REQUEST_BOUND = 20.0
FREEZE_BOUND = 5.0
LOG_A_REQUEST = 16_384
# What may be kept: grammars (256 MiB), stored responses (64 MiB), the keys and values of 32,768 tokens of prefixes, the
# processes that try grammars; and what an allocator keeps beside them.
GROWTH_BOUND = 900 * 2**20


@dataclass
class Totals:
    """What the table at the end says."""

    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    deaths: int = 0
    restarts: int = 0
    log_bytes: int = 0
    longest_freeze: Pulse = field(default_factory=lambda: Pulse(0.0, 0.0, 0.0))
    freezing: str = ""
    slowest: float = 0.0
    slowest_case: str = ""
    largest_growth: int = 0
    growing: str = ""


class Session:
    """`send` never raises for what the server does: that is in `findings`."""

    def __init__(self, folder: Path, freeze_bound: float = FREEZE_BOUND) -> None:
        self.folder, self.findings, self.totals = folder, Findings(), Totals()
        self._freeze_bound, self.ended, self._size = freeze_bound, False, 0
        self._start()
        self.model = self._get("/v1/models")["data"][0]["id"]
        self.known = self._fields()
        self.settings = self._get("/v1/configure", "POST")
        self.references = References(self.model, self.port, REQUEST_BOUND * 10)
        self.references.record()
        # What a server does first, it does slowly.
        self.slowness = min(max(1.0, self.references.record() / NOMINAL_REFERENCES), SLOWEST)
        self.references.patience = self.bound * 2
        self.references.start()

    @property
    def bound(self) -> float:
        return REQUEST_BOUND * self.slowness

    def port(self) -> int | None:
        return self.server.port if self.server is not None and self.server.alive else None

    def send(self, case: Case) -> Exchange:
        exchange = exchanged(self.server.port, case, self.bound)
        self._judge(exchange)
        return exchange

    def note(self, what: str, case: Case) -> None:
        self.findings.add(what, case)

    def kinds(self, case: Case) -> set[tuple[str, ...]]:
        """Send it and say which kinds of fault that shows, without counting it."""
        findings, self.findings = self.findings, Findings()
        requests, self.totals.requests = self.totals.requests, Counter()
        try:
            self.send(case)
            return set(self.findings.kinds)
        finally:
            self.findings, self.totals.requests = findings, requests

    def check(self, case: Case) -> None:
        """Look at the process after something other than a request of `send`."""
        self._look(case, time.monotonic())

    def _judge(self, exchange: Exchange) -> None:
        case, totals = exchange.case, self.totals
        totals.requests[case.label.partition(":")[0], str(exchange.status or "none")] += 1
        if exchange.took > totals.slowest:
            totals.slowest, totals.slowest_case = exchange.took, case.begins
        if (exchange.status or 0) >= 500:
            time.sleep(0.1)  # The log tells of it after the answer.
        explained = self._look(case, exchange.began, exchange)
        try:
            told = list(verdict.problems(exchange, self.known.get(case.route, frozenset())))
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            told = [f"an answer of an unexpected shape ({error!r}): {exchange.body[:200]!r}"]
        for what in told:
            if not (explained and what.startswith("500:")):
                self.note(what, case)

    def _look(self, case: Case, began: float, exchange: Exchange | None = None) -> bool:
        """Is the process there, did it answer others meanwhile, what did it write? True where that was a traceback."""
        self._look_at_freezes(case, began)
        self._look_at_growth(case)
        written = self.watcher.new_log()
        if (found := traceback(written)) is not None:
            self.note(found, case)
        if len(written) > LOG_A_REQUEST:
            self.note(f"the log grew by {len(written)} bytes in a request", case)
        self._look_at_neighbours(case)
        failed = exchange is not None and exchange.status is None
        if failed:
            time.sleep(0.2)  # A process takes a moment to be gone.
        if not self.server.alive:
            self.totals.deaths += 1
            why = "grew too large" if self.watcher.outgrown else f"status {self.server.process.returncode}"
            self.note(f"the server died ({why}): {written.strip()[-300:]}", case)
            self._restart()
        elif failed:
            assert exchange is not None
            self.note(exchange.failure, case)
            if exchange.late:
                # What it still does would be taken for the fault of what comes next.
                self._restart()
        return found is not None

    def _look_at_freezes(self, case: Case, began: float) -> None:
        freeze = self.watcher.longest_freeze(began)
        if freeze.took > self.totals.longest_freeze.took:
            self.totals.longest_freeze, self.totals.freezing = freeze, case.begins
        if freeze.took > self._freeze_bound * self.slowness:
            self.note(f"the event loop froze for {freeze.took:.1f} s", case)

    def _look_at_growth(self, case: Case) -> None:
        samples = self.watcher.samples[-1:]
        grown, self._size = samples[0].rss - self._size if samples and self._size else 0, _median(samples)
        if grown > self.totals.largest_growth:
            self.totals.largest_growth, self.totals.growing = grown, case.begins

    def _look_at_neighbours(self, case: Case) -> None:
        failures, self.references.failures = self.references.failures, []
        for what, reference in failures:
            self.note(f"{what} ({reference.path})", case)

    def _start(self) -> None:
        number = self.totals.restarts
        self.server = ServerProcess(self.folder / f"server-{number}.log", "--request-timeout", "120")
        self.watcher = Watcher(self.server)
        self._size = 0

    def _restart(self) -> None:
        self.totals.restarts += 1
        self.watcher.stop()
        self.totals.log_bytes += self.watcher.log_bytes
        self.server.kill()
        self._start()

    def restore_settings(self) -> None:
        query = "&".join(f"{name}={value}" for name, value in self.settings.items())
        self._get(f"/v1/configure?{query}", "POST")

    def end(self) -> None:
        """Stop the neighbours and the server, and judge what only the whole run shows."""
        self.ended = True
        self.references.stop()
        self._look_at_neighbours(WHOLE_RUN)
        if self.server.alive:
            self._look_at_rest()
        self.watcher.stop()
        for what in self.server.stop():
            self.note(what, WHOLE_RUN)
        if (found := traceback(self.watcher.new_log())) is not None:
            self.note(found, WHOLE_RUN)
        self.totals.log_bytes += self.watcher.log_bytes

    def _look_at_rest(self) -> None:
        """With nobody asking, nothing runs, and the process has the size that it had when it was warm."""
        deadline = time.monotonic() + 10 * self.slowness
        while self._active() and time.monotonic() < deadline:
            time.sleep(0.1)
        if active := self._active():
            self.note(f"{active} rows run with nobody there to read them", WHOLE_RUN)
        time.sleep(0.5)
        early, late = self.sizes()
        if late - early > GROWTH_BOUND:
            self.note(f"memory grew from {early >> 20} to {late >> 20} MiB", WHOLE_RUN)
        if self.watcher.samples[-1].files > self.watcher.samples[0].files + 16:
            self.note(f"{self.watcher.samples[-1].files} files are open at rest", WHOLE_RUN)

    def sizes(self) -> tuple[int, int]:
        """Resident bytes once warm, and in the last tenth of the time."""
        samples = self.watcher.samples
        warm = settled(samples, 0.9)
        early = warm[: max(1, len(warm) // 9)]
        return _median(early), _median(settled(samples, 0.1))

    def _active(self) -> int:
        numbers = self._get("/v1/stats")["batching_stats"]
        return int(numbers["running"] + numbers["prefilling"] + numbers["waiting"])

    def _get(self, path: str, method: str = "GET") -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=REQUEST_BOUND)
        connection.request(method, path)
        return json.loads(connection.getresponse().read())

    def _fields(self) -> dict[str, frozenset[str]]:
        """The body's fields of every route that takes JSON, as the server's own document has them."""
        document = self._get("/openapi.json")
        found: dict[str, frozenset[str]] = {}
        for path, methods in document["paths"].items():
            schema = methods.get("post", {}).get("requestBody", {}).get("content", {}).get("application/json", {})
            name = schema.get("schema", {}).get("$ref", "").rpartition("/")[2]
            if name:
                found[f"POST {path}"] = frozenset(document["components"]["schemas"][name]["properties"])
        return found


# What has been drawn, to be carried out: drawing must depend on nothing that a server does.
Plan = Callable[[Session], object]


def sends(case: Case) -> Plan:
    return lambda session: session.send(case)


WHOLE_RUN = Case("whole run", "/", method="GET", headers=())


def _median(samples: list[Any]) -> int:
    return int(statistics.median(sample.rss for sample in samples)) if samples else 0
