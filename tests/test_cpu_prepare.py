"""`prepare` is the only thing that changes the process, and each of its parts can be switched off."""

from __future__ import annotations

import json
import os
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import parallm_openai.cpu
from parallm_openai import prepare

# Each test starts a process of its own.
pytestmark = pytest.mark.slow

linux = pytest.mark.skipif(sys.platform != "linux" or shutil.which("g++") is None, reason="needs Linux and g++")

# Describes a process: its variables, its threads, its mapped libraries and its imported packages.
STATE = """
import os, sys, threading
WATCHED = {"mlx", "mlx.core", "mlx_lm", "numpy", "transformers", "ctypes", "subprocess"}
def state():
    maps = open("/proc/self/maps").read() if os.path.exists("/proc/self/maps") else ""
    return {
        "environment": dict(os.environ),
        "threads": len(os.listdir("/proc/self/task")) if maps else threading.active_count(),
        "openblas": "libopenblas" in maps,
        "imported": sorted(WATCHED & set(sys.modules)),
    }
"""

# What users and the command line import before `prepare` may have run.
PUBLIC = (
    "parallm_openai.llm",
    "parallm_openai.speculative_decoding",
    "parallm_openai.continuous_batching",
    "parallm_openai.models.loading",
    "parallm_openai.settings",
    "parallm_openai.cli",
    "parallm_openai.cli.bench",
)


def run(code: str, **environment: str) -> Any:
    """What the last line that `code` prints says in JSON, run in a process with these variables."""
    answer = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout.splitlines()[-1])


def test_importing_the_package_changes_nothing() -> None:
    before, after = run(
        f"{STATE}\nbefore = state(); import parallm_openai; after = state()\n"
        "import json; print(json.dumps([before, after]))"
    )
    assert after == before


def test_importing_what_users_import_changes_nothing_and_imports_no_mlx() -> None:
    modules = ", ".join(PUBLIC)
    before, after = run(
        f"{STATE}\nbefore = state(); import {modules}; after = state()\nimport json; print(json.dumps([before, after]))"
    )
    assert after["environment"] == before["environment"]
    assert not after["openblas"]
    # transformers prints advice about PyTorch unless mlx-lm, which silences it, comes first.
    assert not {"mlx", "mlx.core", "mlx_lm", "transformers"} & set(after["imported"])


def test_no_module_of_the_cpu_package_needs_mlx() -> None:
    names = [f"parallm_openai.cpu.{found.name}" for found in pkgutil.iter_modules(parallm_openai.cpu.__path__)]
    assert "parallm_openai.cpu.blas" in names
    blocked = "import sys; sys.modules |= dict.fromkeys(['mlx', 'mlx.core', 'mlx_lm', 'numpy']);"
    assert run(f"{blocked} import {', '.join(names)}; print('true')") is True


@linux
@pytest.mark.parametrize(
    "use",
    [
        "from parallm_openai import LLM, SamplingParams\nimport mlx.core\nLLM(demo.TARGET_PATH).close()",
        "from parallm_openai.llm import LLM\nLLM(demo.TARGET_PATH).close()",
        "from parallm_openai.speculative_decoding import SpeculativeConfig, SpeculativeDecodingEngine\n"
        "SpeculativeDecodingEngine(SpeculativeConfig(demo.TARGET_PATH, demo.DRAFT_PATH)).close()",
        "from parallm_openai.models.loading import load\nload(demo.TARGET_PATH)",
        "from mlx_parallm.continuous_batching import BatchConfig\nimport mlx.core",
    ],
    ids=["LLM", "llm", "speculative_decoding", "load", "mlx_parallm"],
)
def test_a_plain_program_is_prepared_without_a_line_of_its_own(use: str) -> None:
    compat = str(Path(__file__).parents[1] / "compat")
    found = run(
        f"{STATE}\nfrom parallm_openai import demo\n{use}\nimport json; print(json.dumps(state()))",
        PYTHONPATH=os.pathsep.join([compat, *sys.path]),
    )
    assert found["openblas"]
    assert Path(found["environment"]["TEMPDIR"]).name.startswith("compiler-")


@linux
def test_mlx_imported_first_is_said_once_with_the_remedy() -> None:
    said = run(
        "import mlx.core, json, logging, io; text = io.StringIO(); logging.basicConfig(stream=text)\n"
        "from parallm_openai import demo; from parallm_openai.models.loading import load\n"
        "load(demo.TARGET_PATH), load(demo.DRAFT_PATH); print(json.dumps(text.getvalue()))"
    )
    assert said.count("call it before anything imports mlx") == 1
    assert "parallm_openai.prepare()" in said


def test_who_has_chosen_the_slow_blas_is_not_warned() -> None:
    said = run(
        "import json, logging, io; text = io.StringIO(); logging.basicConfig(stream=text)\n"
        "from parallm_openai import demo; from parallm_openai.models.loading import load\n"
        "load(demo.DRAFT_PATH); print(json.dumps(text.getvalue()))",
        PARALLM_BLAS="off",
    )
    assert said == ""


def test_preparing_again_does_nothing_and_says_the_same() -> None:
    before = dict(os.environ)
    assert prepare() is prepare()
    assert dict(os.environ) == before


def test_on_macos_nothing_is_done() -> None:
    before, after, status = run(
        f"import sys; sys.platform = 'darwin'\n{STATE}\nbefore = state()\n"
        "import parallm_openai; status = parallm_openai.prepare()\n"
        "import json; print(json.dumps([before, state(), [status.blas.name, status.compiler]]))"
    )
    assert status == ["Accelerate", "by MLX itself"]
    assert after["environment"] == before["environment"]
    assert not after["openblas"]


def switched(**environment: str) -> tuple[dict[str, Any], list[str]]:
    """The state of a prepared process with these variables, and what its status says of BLAS and compiler."""
    state, status = run(
        f"{STATE}\nimport parallm_openai; status = parallm_openai.prepare(); libraries = state()\n"
        "libraries['single rows'] = 'single_rows-' in open('/proc/self/maps').read()\n"
        "import json; print(json.dumps([libraries, [status.blas.name, status.blas.detail, status.compiler]]))",
        **environment,
    )
    return state, status


def has_compiler(state: dict[str, Any]) -> bool:
    """Whether the process's PATH and TEMPDIR name the folder with our compiler; both do or neither."""
    environment = state["environment"]
    first = Path(environment["PATH"].split(os.pathsep)[0])
    named = first.name.startswith("compiler-")
    assert (environment.get("TEMPDIR") == str(first)) == named
    return named


@linux
def test_everything_is_on_unless_switched_off() -> None:
    state, status = switched()
    assert state["openblas"]
    assert state["single rows"]
    assert has_compiler(state)
    assert status[0] == "OpenBLAS"


@linux
@pytest.mark.parametrize("value", ["off", "OFF", "0", "false", "no"])
def test_blas_off_leaves_mlxs_own(value: str) -> None:
    state, status = switched(PARALLM_BLAS=value)
    assert not state["openblas"]
    assert not state["single rows"]
    assert has_compiler(state)
    assert status[:2] == ["reference", f"PARALLM_BLAS={value}"]


@linux
def test_blas_on_is_the_default() -> None:
    assert switched(PARALLM_BLAS="on")[1][0] == "OpenBLAS"


@linux
def test_single_rows_off_leaves_openblas_alone() -> None:
    state, status = switched(PARALLM_SINGLE_ROWS="off")
    assert state["openblas"]
    assert not state["single rows"]
    assert status[1] == "loaded before mlx; single rows not by sgemv: PARALLM_SINGLE_ROWS=off"


@linux
def test_compiler_off_leaves_path_and_tempdir_alone() -> None:
    # The test's own process is prepared, so its PATH and TEMPDIR name the compiler already.
    assert has_compiler({"environment": dict(os.environ)})
    state, status = switched(PARALLM_COMPILER="off")
    assert state["openblas"]
    assert not has_compiler(state)
    assert "compiler-" not in state["environment"]["PATH"]
    assert status[2] == "by MLX itself: PARALLM_COMPILER=off"


@linux
def test_a_value_that_is_neither_on_nor_off_is_reported_and_counts_as_on() -> None:
    said = run(
        "import json, logging, io; text = io.StringIO(); logging.basicConfig(stream=text)\n"
        "import parallm_openai; status = parallm_openai.prepare()\n"
        "print(json.dumps([text.getvalue(), status.compiler]))",
        PARALLM_COMPILER="maybe",
    )
    assert "PARALLM_COMPILER=maybe is neither on nor off" in said[0]
    assert "off" not in said[1]
