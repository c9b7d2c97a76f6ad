"""What is installed, as JSON. Its source is given to the project's own Python, which may be older than ours and has
nothing of ours: it stands alone."""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib import metadata
from typing import Any


def _distributions() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        if not name or name in found:  # broken, or hidden by one that comes first
            continue
        points: list[dict[str, str]] = [
            {"group": point.group, "name": point.name, "value": point.value}
            for point in distribution.entry_points
            if point.group.startswith("treadle.")
        ]
        found[name] = {
            "version": distribution.version,
            "requires": distribution.requires or [],
            "origin": distribution.read_text("direct_url.json"),
            "entry_points": points,
        }
    return found


def main() -> None:
    sys.path[:] = [entry for entry in sys.path if entry]  # not the current folder
    version = platform.python_version()
    document = {
        "version": version,
        "virtual": sys.prefix != sys.base_prefix,
        "distributions": _distributions(),
        "markers": {
            "implementation_name": sys.implementation.name,
            "implementation_version": version,
            "os_name": os.name,
            "platform_machine": platform.machine(),
            "platform_release": platform.release(),
            "platform_system": platform.system(),
            "platform_version": platform.version(),
            "python_full_version": version,
            "platform_python_implementation": platform.python_implementation(),
            "python_version": ".".join(platform.python_version_tuple()[:2]),
            "sys_platform": sys.platform,
        },
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
