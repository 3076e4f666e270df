"""Have the BLAS's matrix-vector routine multiply single rows, on Linux.

MLX's CPU backend calls `cblas_sgemm` for any number of rows. OpenBLAS copies the matrix into blocks first. That
pays if many rows use them; for one row it takes as long as the product: a weight is read at 9 GB/s, and at 16 by the
same library's `cblas_sgemv`. So a library of a few lines (`single_rows.c`) goes before OpenBLAS in the global scope,
with a `cblas_sgemm` that chooses between the two.
"""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
from pathlib import Path

from parallm_openai.cpu.cache import make_if_missing

SOURCE = Path(__file__).with_name("single_rows.c")


def load_before(blas: Path) -> None:
    """Put the choosing `cblas_sgemm` into the global scope. Load `blas` there only after it.

    Raises RuntimeError if there is no compiler, CalledProcessError if it fails, OSError if its library does not load.
    """
    chooser = ctypes.CDLL(str(_compiled(blas.parent)), mode=ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(blas))
    chooser.choose_between(library.cblas_sgemm, library.cblas_sgemv)


def _compiled(folder: Path) -> Path:
    version = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    return make_if_missing(folder / f"single_rows-{version}.so", _compile)


def _compile(target: Path) -> None:
    # The compiler that MLX itself needs.
    compiler = shutil.which("g++")
    if compiler is None:
        raise RuntimeError("g++ is not installed")
    subprocess.run(
        [compiler, "-x", "c++", "-O2", "-shared", "-fPIC", str(SOURCE), "-o", str(target)],
        check=True,
        capture_output=True,
        timeout=60,
    )
