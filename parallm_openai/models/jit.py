"""Have MLX's CPU backend compile its fused functions for this processor, on Linux.

MLX hands what `mx.compile` has fused to the `g++` on PATH, for the oldest processor of the kind, and its `exp` is
too long for a compiler to inline unasked: SwiGLU takes 23 ns a number where it takes 1.5 as a loop over vectors. So a
`g++` that adds `FLAGS` goes first on this process's PATH. They change no result, but that a product and a sum may be
rounded once instead of twice.

What was compiled is kept in the package's own folder, since MLX takes any file of the right name in the
temporary one for its own, one compiled without the flags among them.

This module must stay importable without `mlx`.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from parallm_openai.models.cache_folder import cache_folder, made_once

# `exp` inlined and without branches is what the compiler can turn into vectors.
FLAGS = ("-finline-limit=10000", "-fno-math-errno", "-fno-trapping-math")
AVX2_FLAGS = ("-mavx2", "-mfma")
_FOLDER = "compiler-"
# A library is there whole or not at all: other processes load it as soon as it is there.
SCRIPT = """#!/bin/sh
for last; do :; done
case "$last" in
    *.so) {command} "$@" -o "$last.$$" && mv "$last.$$" "$last" ;;
    *) exec {command} "$@" ;;
esac
"""


@functools.cache
def prepare() -> str:
    """Put the compiler in place; safe to call more than once. Says how fused functions are compiled, for people.

    Never raises: without a compiler MLX runs each operation by itself.
    """
    if sys.platform != "linux":
        return "by MLX itself"
    search = os.pathsep.join(part for part in os.environ.get("PATH", "").split(os.pathsep) if not _is_ours(part))
    compiler = shutil.which("g++", path=search)
    if compiler is None:
        return "not compiled: g++ is not installed"
    flags = FLAGS + (AVX2_FLAGS if _has_avx2() else ())
    try:
        folder = _wrapped(compiler, flags)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        return f"{compiler} without {' '.join(flags)}: {error}"
    os.environ["PATH"] = f"{folder}{os.pathsep}{search}"
    # The last of the names that C++'s `temp_directory_path` looks at, and one that Python does not.
    os.environ["TEMPDIR"] = str(folder)
    return f"{compiler} {' '.join(flags)}"


def _is_ours(folder: str) -> bool:
    """Whether a parent process of this package put the folder on PATH."""
    return Path(folder).name.startswith(_FOLDER)


def _has_avx2() -> bool:
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    known = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore")
    flags = next((line.split() for line in known.splitlines() if line.startswith("flags")), [])
    return {"avx2", "fma"} <= set(flags)


def _wrapped(compiler: str, flags: tuple[str, ...]) -> Path:
    """A folder with a `g++` that adds the flags; made once, where that works.

    Raises CalledProcessError where the compiler does not take them, OSError or RuntimeError where there is no
    place for programs of one's own.
    """
    script = SCRIPT.format(command=f'"{compiler}" {" ".join(flags)}')
    # Other flags get another folder: what was compiled without them is not taken for what they make.
    folder = cache_folder() / f"{_FOLDER}{hashlib.sha256(script.encode()).hexdigest()[:12]}"
    made_once(folder / "g++", lambda draft: _write_script(draft, script))
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
