"""What torch can compute on, as JSON. Given to the project's own Python as :mod:`scaffold.doctor.inventory` is."""

from __future__ import annotations

import json
import sys
from importlib import import_module


def main() -> None:
    sys.path[:] = [entry for entry in sys.path if entry]
    torch = import_module("torch")  # by name: scaffold itself runs without it
    devices = [f"cuda:{number} ({torch.cuda.get_device_name(number)})" for number in range(torch.cuda.device_count())]
    if getattr(torch.backends, "mps", None) and torch.backends.mps.is_available():
        devices.append("mps")
    if getattr(torch, "xpu", None) and torch.xpu.is_available():
        devices += [f"xpu:{number}" for number in range(torch.xpu.device_count())]
    built_for = torch.version.cuda and f"CUDA {torch.version.cuda}"
    print(json.dumps({"devices": devices, "built_for": built_for, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
