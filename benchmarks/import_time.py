"""What an import costs: fresh interpreters in turn, medians, ratios to ``import torch``.

python benchmarks/import_time.py
"""

from __future__ import annotations

import importlib.util
import os
import platform
import statistics
import subprocess
import sys
import time

ROUNDS = 9
STATEMENTS = {
    "import torch": "import torch",
    "import treadle": "import torch, treadle",
    "every public name of treadle": "import treadle; [getattr(treadle, name) for name in treadle.__all__]",
}
if importlib.util.find_spec("pytorch_lightning"):
    STATEMENTS["import pytorch_lightning"] = "import pytorch_lightning"


ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
"""With bytecode cached, as everywhere but in containers that forbid it; installed packages have theirs in any case."""


def seconds(statement: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True, stderr=subprocess.DEVNULL, env=ENVIRONMENT)
    return time.perf_counter() - start


def main() -> None:
    for statement in STATEMENTS.values():
        seconds(statement)  # compile and cache once
    taken: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for _ in range(ROUNDS):
        for name, statement in STATEMENTS.items():  # in turn, so that a slow moment of the machine meets all of them
            taken[name].append(seconds(statement))
    base = taken["import torch"]
    print(
        f"Python {platform.python_version()}, {ROUNDS} rounds, seconds of a whole process; ratios are medians, pair by pair"
    )
    for name, times in taken.items():
        ratio = statistics.median(mine / torchs for mine, torchs in zip(times, base, strict=True))
        print(f"{name:30} {statistics.median(times):6.2f} s   {ratio:5.2f} x import torch")
    if "import pytorch_lightning" not in STATEMENTS:
        print("pytorch-lightning is not installed: not measured")


if __name__ == "__main__":
    main()
