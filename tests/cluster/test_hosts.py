"""Two hosts that meet by torchrun's c10d rendezvous, over a network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from .conftest import NewRun
from .hosts import PROGRAMS, Host, connected
from .runs import Run, assert_same_training, end, need


@pytest.fixture(scope="session")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Host]]:
    need(*PROGRAMS, packages="iproute2", root=True)
    with connected(tmp_path_factory.mktemp("hosts")) as two:
        yield two


class TestTwoHosts:
    def test_are_two_ranks(self, hosts: tuple[Host, Host], new_run: NewRun, launched: Run, torchrun: list[str]) -> None:
        """One command, typed on both."""
        run = new_run()
        command = [*torchrun, "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-id", "ours"]
        command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{hosts[0].name}:29400", *run.module()]
        with ExitStack() as stack:
            processes = [run.start(host.command(*command)) for host in hosts]
            for process in processes:
                stack.callback(end, process)
            for process in processes:
                run.finish(process)
        assert_same_training(run, launched)
