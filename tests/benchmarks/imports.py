"""How much longer `import gemmascope` takes than `import torch`. Held to: at most 0.3 s.

Run: python tests/benchmarks/imports.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

ROUNDS = 7
ALLOWED = 0.3


def seconds(statement: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - start


def main() -> None:
    # A name is touched as well: the package hands its names out lazily, and the first must not cost the rest.
    statements = ("import torch", "import torch, gemmascope", "import torch, gemmascope; gemmascope.trace")
    for statement in statements:  # once for the disk
        seconds(statement)
    rounds = [[seconds(statement) for statement in statements] for _ in range(ROUNDS)]
    torch_alone, package, first_name = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(f"import torch {torch_alone:.2f} s; gemmascope {package - torch_alone:+.2f} s (allowed {ALLOWED:+.2f} s)")
    print(f"and gemmascope.trace, the function: {first_name - torch_alone:+.2f} s")


if __name__ == "__main__":
    main()
