"""Two hosts on one machine: network namespaces joined by a cable, each with a name and an address of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import final

PROGRAMS = ("ip", "unshare")
NAMES = ("first", "second")
ADDRESSES = ("10.20.30.1", "10.20.30.2")
"""In both namespaces and nowhere else: the machine itself has no route to them."""


@final
@dataclass(frozen=True, kw_only=True)
class Host:
    """Where commands can be run. It is reached from the other by its name or its address."""

    name: str
    address: str
    namespace: str
    hosts: Path
    """Its ``/etc/hosts``."""

    def command(self, *command: str) -> list[str]:
        """``command``, there. Names of hosts are settled as on machines that were set up well: torchrun finds out by them
        who keeps the rendezvous and what MASTER_ADDR is, and gloo which network to use."""
        enter = 'mount --bind "$1" /etc/hosts && hostname "$2" && shift 2 && exec "$@"'
        there = ["ip", "netns", "exec", self.namespace, "unshare", "--uts", "--mount", "sh", "-c", enter, "sh"]
        return [*there, str(self.hosts), self.name, *command]


@contextmanager
def connected(folder: Path) -> Iterator[tuple[Host, Host]]:
    """Two hosts; what still runs on them is killed afterwards."""
    namespaces = [f"treadle-{os.getpid()}-{name}" for name in NAMES]
    lines = (f"{address} {name}\n" for name, address in zip(NAMES, ADDRESSES, strict=True))
    hosts = folder / "hosts"
    hosts.write_text("127.0.0.1 localhost\n" + "".join(lines))
    made: list[str] = []
    try:
        for namespace in namespaces:
            ip("netns", "add", namespace)
            made.append(namespace)
        one, other = namespaces
        ip("link", "add", "cable", "netns", one, "type", "veth", "peer", "name", "cable", "netns", other)
        for namespace, address in zip(namespaces, ADDRESSES, strict=True):
            ip("-n", namespace, "address", "add", f"{address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", namespace, "link", "set", device, "up")
        first, second = (
            Host(name=name, address=address, namespace=namespace, hosts=hosts)
            for name, address, namespace in zip(NAMES, ADDRESSES, namespaces, strict=True)
        )
        yield first, second
    finally:
        for namespace in made:
            for pid in ip("netns", "pids", namespace).split():
                subprocess.run(["kill", "-KILL", pid], capture_output=True)
            ip("netns", "delete", namespace)


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout
