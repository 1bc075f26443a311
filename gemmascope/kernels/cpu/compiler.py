"""Compiles the C++ kernels for this machine, and keeps what was compiled in the cache folder.

The sources need no header but the language's own, which a compiler takes a few seconds for, once. Later processes find the
library by a digest of the sources, the flags and everything that the compiler says of itself and of this processor: a home
folder that several machines share serves them all.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from gemmascope.files.replace import replace_file

SOURCES = ("pointwise.cpp", "int8.cpp")
HEADERS = ("vector.h",)
# OpenMP is the library whose threads torch has: the processor is not given to two sets of threads. GCC warns that vectors
# as arguments depend on the processor, which matters only to a library that is not compiled as a whole.
FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-fPIC", "-fvisibility=hidden", "-Wno-psabi",
)  # fmt: skip
SECONDS = 300  # after which a compiler counts as hanging


class CompilingError(Exception):
    """The kernels cannot be compiled here; why."""


def find_compiler() -> list[str]:
    """The command of a C++ compiler: the environment's CXX, or one with a usual name.

    Raises:
        CompilingError: This is not Linux, or there is none.
    """
    if sys.platform != "linux":
        raise CompilingError("they are compiled on Linux only")
    named = shlex.split(os.environ.get("CXX", ""))
    for command in (named, ["c++"], ["g++"], ["clang++"]):
        if command and shutil.which(command[0]):
            return command
    raise CompilingError("there is no C++ compiler")


def load_library() -> ctypes.CDLL:
    """The compiled kernels, from the cache if it has them.

    Raises:
        CompilingError: They cannot be compiled, or what was compiled cannot be loaded.
    """
    compiler = find_compiler()
    library = cache_folder() / f"{_identity(compiler)}.so"
    if library.exists():
        with suppress(OSError):  # cut short, or in a folder whose files may not be run: compile it again
            return ctypes.CDLL(str(library))
    print("gemmascope compiles its kernels for this processor, once: some seconds", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="gemmascope-") as folder:
        compiled = Path(folder) / "kernels.so"
        sources = [str(_here(name)) for name in SOURCES]
        _run([*compiler, *FLAGS, "-shared", *sources, "-o", str(compiled)])
        with suppress(OSError):  # a cache that cannot be written: the next process compiles anew
            library.parent.mkdir(parents=True, exist_ok=True)
            replace_file(str(library), [compiled.read_bytes()], None)
        try:
            return ctypes.CDLL(str(compiled))
        except OSError as reason:
            raise CompilingError(f"what was compiled cannot be loaded: {reason}") from reason


def cache_folder() -> Path:
    """The folder of compiled kernels, in GEMMASCOPE_CACHE or ~/.cache/gemmascope."""
    base = os.environ.get("GEMMASCOPE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "gemmascope"
    return Path(base).expanduser() / "kernels"


def _identity(compiler: Sequence[str]) -> str:
    """A digest of all that the compiled kernels depend on."""
    digest = hashlib.sha256(shlex.join(FLAGS).encode())
    for name in (*HEADERS, *SOURCES):
        digest.update(_here(name).read_bytes())
    # The compiler's version, and the instructions that -march=native stands for on this processor.
    digest.update(_run([*compiler, *FLAGS, "-dM", "-E", "-x", "c++", os.devnull]).encode())
    return digest.hexdigest()[:32]


def _here(name: str) -> Path:
    return Path(__file__).with_name(name)


def _run(command: Sequence[str]) -> str:
    """What a command prints. CompilingError, with the end of its errors, if it fails."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError) as reason:
        raise CompilingError(f"{command[0]} does not run: {reason}") from reason
    if done.returncode:
        said = " ".join(done.stderr.split())
        raise CompilingError(f"{command[0]} fails: {said[-200:] or f'it ends with {done.returncode}'}")
    return done.stdout
