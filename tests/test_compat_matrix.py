"""`compat/run`: which clients there are, what their reports say, and the table that keeps it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import ROOT

from compat.matrix.clients import Client, clients, pins
from compat.matrix.environments import NotInstalled, installed
from compat.matrix.results import Line, read, write

TESTS = '''
"""What a client does.

More of it.
"""
import pytest

def test_passes(): pass
def test_runs_seven(record_property): record_property("cases", 7)
def test_fails(): assert False
@pytest.mark.xfail(reason="the model is small")
def test_known(): assert False
@pytest.mark.skip(reason="no pictures")
def test_one(): pass
@pytest.mark.skip(reason="no pictures")
def test_two(): pass
'''


@pytest.fixture
def client(tmp_path: Path) -> Client:
    (tmp_path / "test_it.py").write_text(TESTS)
    return Client(tmp_path)


def report(client: Client, *arguments: str) -> Path:
    path = client.folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-c", "/dev/null", f"--rootdir={client.folder}", f"--junitxml={path}"]
    subprocess.run([*command, str(client.folder), *arguments], capture_output=True, timeout=240, check=False)
    return path


def test_every_client_says_in_a_sentence_what_is_checked() -> None:
    found = clients()
    assert len(found) >= 6
    for each in found:
        assert each.checked.endswith((".", "?")), each.name
        assert each.pins or each.node_packages, each.name


def test_the_first_paragraph_of_the_docstring_is_what_is_checked(client: Client) -> None:
    assert client.checked == "What a client does."


def test_versions_are_pinned_exactly(tmp_path: Path) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text("# why\n\nhttpx[http2]==0.28.1  # and so\npytest==9.2.0\n")
    assert pins(file) == {"httpx": "0.28.1", "pytest": "9.2.0"}
    file.write_text("httpx>=0.28\n")
    with pytest.raises(ValueError, match="no exact version"):
        pins(file)


@pytest.mark.slow
def test_a_result_counts_tests_and_tells_the_reasons(client: Client) -> None:
    outcome = read(report(client))
    assert outcome.words == (
        "passed 8; **failed 1**: test_fails; xfailed 1 (the model is small); skipped 2 (2 times: no pictures)"
    )
    assert read(report(client, "-k", "one or two")).words == "not run: no pictures"


@pytest.mark.slow
def test_tests_that_cannot_be_imported_have_failed(client: Client) -> None:
    (client.folder / "test_it.py").write_text("import no_such_module\n")
    assert read(report(client)).words.startswith("passed 0; **failed 1**")


def test_what_cannot_be_installed_is_not_run(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    (client.folder / "package.json").write_text('{"dependencies": {"left": "1.0.0"}}')
    (client.folder / "package-lock.json").write_text("{}")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(NotInstalled, match="npm"):
        installed(client)


def test_a_client_that_is_here_in_its_version_needs_no_environment(client: Client) -> None:
    version = subprocess.run(
        [sys.executable, "-c", "import httpx; print(httpx.__version__)"], capture_output=True, text=True, check=True
    ).stdout.strip()
    (client.folder / "requirements.txt").write_text(f"httpx=={version}\n")
    environment = installed(client)
    assert (environment.python, environment.versions) == (Path(sys.executable), {"httpx": version})


def test_the_table_keeps_the_lines_of_clients_that_were_not_run(tmp_path: Path) -> None:
    matrix = tmp_path / "MATRIX.md"
    one, two = (Line(name, "x 1", "demo", "this | that", "passed 1") for name in ("one", "two"))
    write([two, one], ["one", "two"], matrix)
    before = matrix.read_text()
    assert before.splitlines()[-2:] == [str(one), str(two)]
    assert "this \\| that" in before
    write([one], ["one", "two"], matrix)
    assert matrix.read_text() == before
    write([Line("one", "x 2", "demo", "this", "passed 2")], ["one"], matrix)
    assert matrix.read_text().splitlines()[-1] == "| one | x 2 | demo | this | passed 2 |"


@pytest.mark.slow
def test_clients_that_are_not_there_are_named() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "compat.matrix", "nobody"], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 1
    assert "no client nobody" in done.stderr
    assert "openai_python" in done.stderr
