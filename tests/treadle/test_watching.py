"""A collective that stalls names the rank and the place, within a stated time."""

import os
import signal
import threading
import time
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from treadle.environments import World
from treadle.launch import run_in_ranks
from treadle.watching import Sign, Watch, report

AFTER, EVERY = 0.8, 0.25


def loads_slowly() -> None:
    time.sleep(AFTER + 5 * EVERY)


def wait_for_all() -> None:
    dist.all_reduce(torch.ones(()))


def rank_1_comes_late() -> None:
    if dist.get_rank() == 1:
        loads_slowly()
    wait_for_all()


def all_compute() -> None:
    loads_slowly()
    wait_for_all()


def wait_often_but_not_long() -> None:
    for _ in range(int((AFTER + 4 * EVERY) / 0.05)):
        if dist.get_rank() == 1:
            time.sleep(0.05)
        wait_for_all()


def meet_in_backward(model: torch.nn.Module) -> None:
    loss = model(torch.ones(1, 2)).sum()
    if dist.get_rank() == 0:
        loads_slowly()
    loss.backward()


def freeze_one() -> None:
    pids = [torch.zeros((), dtype=torch.int64) for _ in range(3)]
    dist.all_gather(pids, torch.tensor(os.getpid()))
    if dist.get_rank() == 0:
        threading.Timer(AFTER + 5 * EVERY, os.kill, (int(pids[2]), signal.SIGCONT)).start()
    if dist.get_rank() == 2:
        os.kill(os.getpid(), signal.SIGSTOP)
    wait_for_all()


def train(folder: Path) -> list[str]:
    """What is reported in each situation, on all ranks together."""
    rank, port = int(os.environ["RANK"]), int(os.environ["MASTER_PORT"])
    store = dist.TCPStore("127.0.0.1", port, 3, is_master=rank == 0, timeout=timedelta(seconds=60))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=3, timeout=timedelta(seconds=60))
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 1))
    situations = [
        rank_1_comes_late,
        all_compute,
        wait_often_but_not_long,
        freeze_one,
        partial(meet_in_backward, model),
    ]
    reports = []
    with (folder / f"{rank}.txt").open("w") as out:
        watch = Watch(store, rank, 3, after=AFTER, every=EVERY, position=lambda: "epoch 3, batch 11", out=out)
        watch.start()
        read = 0
        for situation in situations:
            situation()
            time.sleep(2 * EVERY)  # a report that is being written
            wait_for_all()
            text = "".join(path.read_text() for path in sorted(folder.glob("*.txt")))
            reports.append(text[read:])
            read = len(text)
            wait_for_all()
        watch.stop()
        wait_for_all()
    # The group is not closed here, and so not by the last who owns it. That would be DDP's reducer, with Python's lock held:
    # it waits for the group's threads, and one of those may wait for the lock, to forget a tensor of the last all_reduce.
    return reports


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    found: list[str] = run_in_ranks(World(size=3, local_size=3), "fork", train, tmp_path_factory.mktemp("reports"))
    return found


class TestWhileSomeWait:
    def test_the_one_they_wait_for_is_named_with_its_place(self, reports: list[str]) -> None:
        said = reports[0]
        assert said.startswith("treadle: ranks 0, 2 wait for others, for ")
        assert "in all_reduce, test_watching.py:" in said
        assert "in wait_for_all" in said
        assert "rank 1: in test_watching.py:" in said
        assert "in loads_slowly; epoch 3, batch 11" in said
        assert "probably waited for: rank 1." in said

    def test_it_is_said_once(self, reports: list[str]) -> None:
        assert reports[0].count("treadle:") == 1

    def test_a_frozen_process_is_told_from_a_slow_one(self, reports: list[str]) -> None:
        assert "rank 2: no sign of life since " in reports[3]
        assert "probably waited for: rank 2." in reports[3]

    def test_for_rank_0_in_ddps_backward_it_is_said_too(self, reports: list[str]) -> None:
        assert reports[4].count("treadle:") == 1
        assert "ranks 1-2: in backward, test_watching.py:" in reports[4]
        assert "probably waited for: rank 0." in reports[4]


class TestNothingIsSaid:
    def test_of_work_that_all_do_however_long(self, reports: list[str]) -> None:
        assert reports[1] == ""

    def test_of_a_loop_whose_ranks_wait_all_the_time_but_get_on(self, reports: list[str]) -> None:
        assert reports[2] == ""


def sign(call: str | None = None, line: str = "train.py:4 in step", position: str = "batch 7") -> Sign:
    return Sign(beat=3, clock="12:00:00", position=position, call=call, line=line, inside=line, still=61.0)


class TestTheReport:
    def test_groups_ranks_of_one_place(self) -> None:
        signs = {rank: sign("all_reduce") for rank in range(6)} | {4: sign(line="data.py:12 in __getitem__")}
        text = report(signs, set(), 6, 60.0)
        assert text is not None
        assert "ranks 0-3, 5: in all_reduce, train.py:4 in step; batch 7\n" in text
        assert "rank 4: in data.py:12 in __getitem__; batch 7\n" in text

    def test_names_a_rank_that_never_came(self) -> None:
        text = report({0: sign("barrier"), 2: sign("barrier")}, set(), 3, 60.0)
        assert text is not None
        assert "rank 1: has not come this far" in text

    def test_says_that_ranks_wait_for_different_things(self) -> None:
        text = report({0: sign("all_reduce"), 1: sign("barrier", "train.py:9 in step")}, set(), 2, 60.0)
        assert text is not None
        assert "each waits in another call" in text
        assert "probably" not in text

    @pytest.mark.parametrize("call", [None, "backward"])
    def test_is_none_where_all_do_the_same(self, call: str | None) -> None:
        assert report({0: sign(call), 1: sign(call)}, set(), 2, 60.0) is None

    def test_is_none_once_they_get_on(self) -> None:
        assert report({0: sign("barrier"), 1: sign()}, set(), 2, 62.0) is None
