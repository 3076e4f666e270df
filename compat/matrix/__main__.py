"""`compat/run`: installs clients, runs their tests against servers of this code, and writes MATRIX.md."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

from compat.matrix import results
from compat.matrix.clients import BRINGS_MODEL, NOT_RUN, ROOT, SECONDS, Client, clients
from compat.matrix.environments import Environment, NotInstalled, installed
from compat.matrix.results import Line
from compat.matrix.server import model_at, serving


def main(names: Sequence[str]) -> int:
    known = clients()
    unknown = sorted(set(names) - {client.name for client in known})
    if unknown:
        sys.exit(f"compat/run: no client {', '.join(unknown)}; there are {', '.join(each.name for each in known)}")
    chosen = [client for client in known if not names or client.name in names]
    # Without the model that is served by default, the bundled one takes its place: the matrix tells.
    subprocess.run([sys.executable, "-m", "parallm_openai", "models", "fetch", "smollm2"], check=False)
    # Installing waits for the network and for the disk in turns.
    with ThreadPoolExecutor(2) as pool:
        environments = dict(zip((each.name for each in chosen), pool.map(_install, chosen), strict=True))
    lines = []
    for flags, group in groupby(sorted(chosen, key=lambda each: each.serve), key=lambda each: each.serve):
        with contextlib.nullcontext("") if flags == BRINGS_MODEL else serving(flags) as url:
            lines += [_line(client, environments[client.name], url) for client in group]
    lines += [Line(name, "", "", checked, f"not run: {why}") for name, (checked, why) in NOT_RUN.items()]
    results.write(lines, [*(client.name for client in known), *NOT_RUN])
    print(f"compat/run: {len(chosen)} clients, see {results.MATRIX.relative_to(ROOT)}")
    return 1 if any("**failed" in line.result for line in lines) else 0


def _install(client: Client) -> Environment | NotInstalled:
    try:
        return installed(client)
    except NotInstalled as why:
        return why


def _line(client: Client, environment: Environment | NotInstalled, url: str) -> Line:
    if isinstance(environment, NotInstalled):
        line = Line(client.name, _named(client.pins), "", client.checked, f"not run: {environment}")
    else:
        result = _tested(client, environment, url)
        model = "made by its tests" if client.brings_model else model_at(url)
        line = Line(client.name, _named(environment.versions), model, client.checked, result)
    print(f"compat/run: {client.name}: {line.result}", flush=True)
    return line


def _named(versions: dict[str, str]) -> str:
    return ", ".join(f"{package} {version}" for package, version in versions.items())


def _tested(client: Client, environment: Environment, url: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        # A client's own deprecations are no fault of this server.
        options = ["-p", "no:cacheprovider", "-W", "default", "--disable-warnings", f"--junitxml={report}"]
        # The newer form has no properties of tests.
        options += ["-o", "junit_family=xunit1"]
        own = {"PARALLM_URL": url, "PARALLM_COMPAT": str(client.environment)}
        process = subprocess.Popen(
            [str(environment.python), "-m", "pytest", str(client.folder), *options],
            cwd=ROOT,
            env=os.environ | own,
            start_new_session=True,
        )
        try:
            process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            return f"**failed**: was not done after {SECONDS // 60} minutes"
        finally:
            _end(process)
        if not report.exists():
            return f"**failed**: pytest ended with status {process.returncode}"
        outcome = results.read(report)
    if process.returncode not in (0, 5) and not outcome.failed:
        return f"**failed**: pytest ended with status {process.returncode}"
    return outcome.words


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the tests with all that they have started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(40)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
