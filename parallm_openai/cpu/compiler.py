"""Have MLX's CPU backend compile its fused functions for this processor, on Linux.

MLX hands what `mx.compile` has fused to the `g++` on PATH, for the oldest processor of the kind, and its `exp` is
too long for a compiler to inline unasked: a SwiGLU takes 23 ns a number, and 1.5 as a loop over vectors. So a
`g++` that adds `FLAGS` goes first on this process's PATH. The flags change results by one rounding at most: a product
and a sum may be rounded once instead of twice.

MLX takes any file of the right name in the temporary folder for one of its own, even if it was compiled without the
flags. So what was compiled is kept in a folder of this package, which TEMPDIR names.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
from pathlib import Path

from parallm_openai.cpu import switches
from parallm_openai.cpu.cache import FOLDER_NAME, cache_folder, make_if_missing

# `exp` inlined and without branches is what the compiler can turn into vectors.
FLAGS = ("-finline-limit=10000", "-fno-math-errno", "-fno-trapping-math")
AVX2_FLAGS = ("-mavx2", "-mfma")
_FOLDER = "compiler-"
# The library is moved into place when it is whole: other processes load it as soon as it is there.
SCRIPT = """#!/bin/sh
for last; do :; done
case "$last" in
    *.so) {command} "$@" -o "$last.$$" && mv "$last.$$" "$last" ;;
    *) exec {command} "$@" ;;
esac
"""


def prepare() -> str:
    """Put the compiler in place. Says for people how fused functions are compiled.

    Never raises: without a compiler MLX runs each operation by itself.
    """
    search = _path_as_it_was()
    off = switches.switched_off(switches.COMPILER)
    if off is not None:
        return f"by MLX itself: {off}"
    compiler = shutil.which("g++", path=search)
    if compiler is None:
        return "not compiled: g++ is not installed"
    flags: tuple[str, ...] = FLAGS
    try:
        if _has_avx2():
            flags += AVX2_FLAGS
        folder = _wrapped(compiler, flags)
    except Exception as error:
        return f"{compiler} without {' '.join(flags)}: {error}"
    os.environ["PATH"] = f"{folder}{os.pathsep}{search}"
    # The last of the names that C++'s `temp_directory_path` looks at, and one that Python does not.
    os.environ["TEMPDIR"] = str(folder)
    return f"{compiler} {' '.join(flags)}"


def _path_as_it_was() -> str:
    """PATH without our folder, which a parent process may have put there; takes it from the environment as well."""
    parts = os.environ.get("PATH", "").split(os.pathsep)
    kept = [part for part in parts if not _is_ours(part)]
    if len(kept) < len(parts):
        os.environ["PATH"] = os.pathsep.join(kept)
    if _is_ours(os.environ.get("TEMPDIR", "")):
        del os.environ["TEMPDIR"]
    return os.pathsep.join(kept)


def _is_ours(folder: str) -> bool:
    path = Path(folder)
    return path.name.startswith(_FOLDER) and path.parent.name.startswith(FOLDER_NAME)


def _has_avx2() -> bool:
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    known = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore")
    flags = next((line.split() for line in known.splitlines() if line.startswith("flags")), [])
    return {"avx2", "fma"} <= set(flags)


def _wrapped(compiler: str, flags: tuple[str, ...]) -> Path:
    """A folder with a `g++` that adds the flags; made once, and only if it works.

    Raises CalledProcessError if the compiler does not take the flags, and OSError or RuntimeError if there is no
    folder to put a program into.
    """
    script = SCRIPT.format(command=f'"{compiler}" {" ".join(flags)}')
    # Other flags get another folder, so that what was compiled without them is not used.
    folder = cache_folder() / f"{_FOLDER}{hashlib.sha256(script.encode()).hexdigest()[:12]}"
    make_if_missing(folder / "g++", lambda target: _write_script(target, script))
    return folder


def _write_script(target: Path, script: str) -> None:
    target.write_text(script)
    target.chmod(0o755)
    _try_out(str(target))


def _try_out(compiler: str) -> None:
    subprocess.run(
        [compiler, "-fsyntax-only", "-x", "c++", "-"],
        input=b"int answer = 42;",
        check=True,
        capture_output=True,
        timeout=60,
    )
