"""Have a single row's products made by the BLAS's matrix-vector routine, on Linux.

MLX's CPU backend calls `cblas_sgemm` for rows of any number. OpenBLAS copies the matrix into blocks first, which
pays where many rows use them; for one row it takes as long as the product: a weight is read at 9 GB/s where the same
library's `cblas_sgemv` reads it at 16. So a library of a few lines goes before it in the global scope, with a
`cblas_sgemm` that chooses between the two.

This module must stay importable without `mlx`.
"""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
from pathlib import Path

from parallm_openai.models.cache_folder import made_once

# 101 is row-major, 111 and 112 are as it is and transposed: the numbers of the CBLAS standard.
SOURCE = """
typedef void (*gemm_t)(int, int, int, int, int, int, float, const float *, int, const float *, int,
                       float, float *, int);
typedef void (*gemv_t)(int, int, int, int, float, const float *, int, const float *, int, float, float *, int);

static gemm_t gemm;
static gemv_t gemv;

void choose_between(gemm_t many, gemv_t one) {
    gemm = many;
    gemv = one;
}

void cblas_sgemm(int order, int turn_a, int turn_b, int m, int n, int k, float alpha, const float *a, int lda,
                 const float *b, int ldb, float beta, float *c, int ldc) {
    if (order != 101 || m != 1)
        gemm(order, turn_a, turn_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
    else if (turn_b == 111)
        gemv(order, 112, k, n, alpha, b, ldb, a, turn_a == 111 ? 1 : lda, beta, c, 1);
    else
        gemv(order, 111, n, k, alpha, b, ldb, a, turn_a == 111 ? 1 : lda, beta, c, 1);
}
"""


def load_before(blas: Path) -> None:
    """Put the choosing `cblas_sgemm` into the global scope; `blas` is to follow.

    Raises RuntimeError without a compiler, CalledProcessError where it fails, OSError where what it made does not load.
    """
    chooser = ctypes.CDLL(str(_compiled(blas.parent)), mode=ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(blas))
    chooser.choose_between(library.cblas_sgemm, library.cblas_sgemv)


def _compiled(folder: Path) -> Path:
    return made_once(folder / f"single_row-{hashlib.sha256(SOURCE.encode()).hexdigest()[:12]}.so", _compile)


def _compile(target: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        raise RuntimeError("g++ is not installed")
    subprocess.run(
        [compiler, "-x", "c++", "-O2", "-shared", "-fPIC", "-", "-o", str(target)],
        input=f'extern "C" {{{SOURCE}}}'.encode(),
        check=True,
        capture_output=True,
        timeout=60,
    )
