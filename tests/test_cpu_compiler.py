"""The compiler of MLX's fused functions on Linux; each case in a process of its own, as it is settled once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from parallm_openai.cpu.compiler import FLAGS

COMPILER = shutil.which("g++")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux" or COMPILER is None, reason="needs Linux and g++"),
]

SILU = """
import mlx.core as mx, mlx.nn as nn
x = mx.array([float("nan"), float("-inf"), float("inf"), -200.0, 200.0] + [v / 7 for v in range(-600, 600)])
fused, plain = nn.silu(x), x * (1 / (1 + mx.exp(-x)))
assert mx.allclose(fused[5:], plain[5:], rtol=1e-5, atol=1e-7).item()
assert [str(v) for v in fused[:5].tolist()] == ["nan", "nan", "inf", "-0.0", "200.0"], fused[:5]
"""


def prepared(code: str = "", **environment: str) -> str:
    """What the package says of the compiler in a fresh process with these variables, after running `code`."""
    answer = subprocess.run(
        [
            sys.executable,
            "-c",
            f"from parallm_openai import prepare; prepare()\n{code}\nprint(prepare().compiler)",
        ],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


def compiler_that(does: str, folder: Path) -> str:
    """A PATH on which `g++` is a script of these lines, with "$@" for its arguments."""
    script = folder / "g++"
    script.write_text(f"#!/bin/sh\n{does}\n")
    script.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def test_fused_functions_are_compiled_with_the_flags_and_compute_the_same(tmp_path: Path) -> None:
    path = compiler_that(f'echo "$@" >> {tmp_path}/seen; exec {COMPILER} "$@"', tmp_path)
    told = prepared(SILU, PATH=path, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert told.startswith(f"{tmp_path}/g++ ")
    lines = (tmp_path / "seen").read_text().splitlines()
    compiled = [line for line in lines if "-shared" in line and "single_rows" not in line]
    assert compiled
    assert all(set(FLAGS) <= set(line.split()) for line in compiled)


def test_what_was_compiled_is_kept_in_the_packages_own_folder(tmp_path: Path) -> None:
    for _ in range(2):
        prepared(SILU, XDG_CACHE_HOME=str(tmp_path))
    assert len(list(tmp_path.glob("parallm-openai/compiler-*/mlx/*/cpu/*.so"))) == 1


def test_processes_that_start_together_all_load_whole_libraries(tmp_path: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        told = set(pool.map(lambda _: prepared(SILU, XDG_CACHE_HOME=str(tmp_path)), range(3)))
    assert len(told) == 1
    left = [path.suffix for path in tmp_path.glob("parallm-openai/compiler-*/mlx/*/cpu/*")]
    assert sorted(left) == [".cpp", ".so"]


def test_a_process_started_by_another_takes_the_same_compiler(tmp_path: Path) -> None:
    program = "import parallm_openai; parallm_openai.prepare()"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {program!r}], check=True)"
    prepared(child, XDG_CACHE_HOME=str(tmp_path))
    assert len(list(tmp_path.glob("parallm-openai/compiler-*"))) == 1


def test_without_a_compiler_operations_run_by_themselves(tmp_path: Path) -> None:
    assert prepared(SILU, PATH=str(tmp_path)) == "not compiled: g++ is not installed"


def test_a_compiler_that_refuses_the_flags_is_left_to_mlx_as_it_is(tmp_path: Path) -> None:
    refuses = f'case "$*" in *{FLAGS[0]}*) echo no such flag >&2; exit 1;; esac; exec {COMPILER} "$@"'
    path = compiler_that(refuses, tmp_path)
    told = prepared(SILU, PATH=path, XDG_CACHE_HOME=str(tmp_path / "cache"), TMPDIR=str(tmp_path))
    assert told.startswith(f"{tmp_path}/g++ without {FLAGS[0]}")
    assert not [left for left in tmp_path.glob("cache/parallm-openai/compiler-*/*") if left.is_file()]
