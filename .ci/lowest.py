"""The lowest versions that pyproject.toml allows, one a line, as pip takes them: those of the package and of its tests."""

import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # mypy and pytest bring it there

# What checks the code itself, or needs a browser or a server, is left out of the run on the lowest versions, and Triton, of
# which each build of torch for CUDA brings its own version.
LEFT_OUT = {"ruff", "mypy", "import-linter", "playwright", "jupyterlab", "gemmascope", "triton"}
# torch's old builds on PyPI bring three gigabytes of CUDA: pip takes the build that it finds first.
ANY_VERSION = {"torch"}


def lowest(requirement: str) -> str | None:
    """'einops>=0.8' -> 'einops==0.8'; None for one that is left out."""
    found = re.match(r"([\w-]+)(?:\[[\w,]*\])?\s*(?:>=|==)\s*([\w.]+)", requirement)
    if found is None or found[1] in LEFT_OUT:
        return None
    return requirement if found[1] in ANY_VERSION else f"{found[1]}=={found[2]}"


project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = project["optional-dependencies"]
for line in map(lowest, [*project["dependencies"], *extras["lab"], *extras["test"]]):
    if line:
        sys.stdout.write(f"{line}\n")
