"""Ranks that a script or a session starts by itself: real processes, and what is left of them."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks

from treadle.collectives import Ranks, everywhere
from treadle.environments import World
from treadle.errors import ConfigError, DistributedError, TrainingError
from treadle.launch import run_in_ranks

SCRIPT = '''
import os, pathlib, signal, sys, time
from datetime import timedelta

from treadle.environments import World
from treadle.errors import ConfigError
from treadle.launch import Patience, note, start_script, stay_with_parent

here = pathlib.Path(__file__).parent


def say(text):
    os.write(1, (text + chr(10)).encode())  # at once: lines of ranks that share a pipe stay whole


def meet(rank, port):
    """As treadle.collectives does."""
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", port, 2, is_master=rank == 0, timeout=timedelta(seconds=60))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))


def add_up():
    import torch, torch.distributed as dist

    total = torch.ones(())
    dist.all_reduce(total)
    return int(total)


def read_sample():
    raise ValueError("sample 17 is unreadable")


def main(then):
    stay_with_parent()
    if "TREADLE_LAUNCHED" in os.environ:
        rank, port = int(os.environ["RANK"]), int(os.environ["MASTER_PORT"])
    else:
        patience = Patience(settle=2.0, stuck=2.0, late=5.0)
        launched = start_script(World(size=2, local_size=2), patience=patience)
        rank, port = launched.world.rank, launched.world.port
    if then in ("fail", "own", "leave"):
        meet(rank, port)
        assert add_up() == 2
    (here / f"{rank}.partial").write_text(str(os.getpid()))
    (here / f"{rank}.partial").replace(here / f"{rank}.pid")
    while len(list(here.glob("?.pid"))) < 2:
        time.sleep(0.05)
    match then, rank:
        case ("arguments", _):
            if rank == 0:
                assert start_script(World(size=2, local_size=2)) is launched
                try:
                    start_script(World(size=3, local_size=3))
                except ConfigError as error:
                    say(error.what)
            say(f"rank {rank} is done with {sys.argv[1:]}")
        case ("fail" | "late" | "stuck", 1):
            read_sample()
        case ("die", 1):
            os.kill(os.getpid(), signal.SIGKILL)
        case ("own", 0):
            raise KeyError("of rank 0")
        case ("same", _):
            time.sleep(1.0 - rank)  # rank 1 is the first
            read_sample()
        case ("leave", 1):
            sys.exit(0)
        case ("asleep", 1):
            try:
                read_sample()
            except ValueError as error:
                assert note(error)  # as a command does, that ends without a traceback
                sys.exit(1)
        case ("stuck", 0):
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            time.sleep(120)
        case ("asleep" | "sleep" | "die", _) | ("hang", 1):
            time.sleep(120)
        case ("late" | "hang", 0):
            say("rank 0 is done")
        case _:
            add_up()


main(sys.argv[1])
'''


class Run:
    """``train.py THEN`` in a process group of its own, as a shell starts it."""

    def __init__(self, folder: Path, then: str) -> None:
        folder.mkdir()
        self.said: tuple[str, str] | None = None
        self.folder, script = folder, folder / "train.py"
        script.write_text(SCRIPT)
        program = ["-m", "train"] if then == "arguments" else [str(script)]
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error::ResourceWarning", *program, then],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)},
        )

    def pids(self) -> list[int]:
        """Of both ranks, once they have met."""
        wait_for(lambda: len(list(self.folder.glob("?.pid"))) == 2 or self.process.poll() is not None)
        return [int(path.read_text()) for path in sorted(self.folder.glob("?.pid"))]

    def end(self) -> tuple[int, str, str]:
        """Exit status, output, errors."""
        if self.said is None:
            self.said = self.process.communicate(timeout=60)
        return self.process.returncode, *self.said


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Run]]:
    """All of them are started at once, since most of their time is waiting; each test looks at its own."""
    folder = tmp_path_factory.mktemp("runs")
    names = ["arguments", "fail", "die", "own", "same", "leave", "asleep", "stuck", "sleep", "late", "hang"]
    started = {name: Run(folder / name, name) for name in names}
    started["interrupt"] = Run(folder / "interrupt", "sleep")
    yield started.__getitem__
    for run in started.values():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.process.pid, signal.SIGKILL)
        run.end()


class TestAScript:
    def test_runs_once_per_rank_with_its_arguments(self, runs: Callable[[str], Run]) -> None:
        status, out, err = runs("arguments").end()
        assert (status, err) == (0, "")
        assert "rank 0 is done with ['arguments']\n" in out
        assert "rank 1 is done with ['arguments']\n" in out

    def test_has_as_many_ranks_as_its_first_launch_made(self, runs: Callable[[str], Run]) -> None:
        _, out, _ = runs("arguments").end()
        assert "devices=3, but this script runs as 2 ranks already.\n" in out

    def test_without_a_file_is_refused(self) -> None:
        program = (
            "from treadle.environments import World; from treadle.launch import start_script\n"
            "start_script(World(size=2, local_size=2))"
        )
        errors = said_by(program)[1]
        assert "ConfigError: 2 ranks of a program that is no file." in errors
        assert "fix: put the program into a file" in errors

    def test_on_several_nodes_is_told_the_launcher_to_use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from treadle.launch import script, start_script

        monkeypatch.setattr(script, "is_interactive", lambda: False)  # a worker of pytest's is no script
        with pytest.raises(ConfigError, match=r"2 nodes, and no launcher(?s:.*)torchrun --nnodes 2 --nproc-per-node 4"):
            start_script(World(size=8, local_size=4, nodes=2))


class TestARankThatFails:
    """'The run ends with that rank's traceback, and nothing is left.'"""

    def test_is_named_with_its_traceback(self, runs: Callable[[str], Run]) -> None:
        run = runs("fail")
        pids, (status, _, err) = run.pids(), run.end()
        assert status == 1
        assert "rank 1 of 2 failed: ValueError: sample 17 is unreadable" in err
        assert err.count(", in read_sample") == 1
        assert "gloo/transport" in err.partition("direct cause")[0]  # where rank 0 was
        assert len(pids) == 2
        assert not any(map(running, pids))
        assert not list(run.folder.glob("treadle-ranks-*"))

    def test_by_a_signal_says_what_sends_it(self, runs: Callable[[str], Run]) -> None:
        run = runs("die")
        pids, (status, _, err) = run.pids(), run.end()
        assert status == 1
        assert "rank 1 of 2 was killed (SIGKILL)." in err
        assert "out-of-memory killer" in err
        assert not any(map(running, pids))

    @pytest.mark.parametrize("rank_zero", ["asleep", "stuck"])
    def test_ends_a_rank_0_that_would_not_notice(self, runs: Callable[[str], Run], rank_zero: str) -> None:
        run = runs(rank_zero)
        pids, (status, _, err) = run.pids(), run.end()
        assert status == 1
        assert err.count("ValueError: sample 17 is unreadable") == 2  # the fact, and the end of its traceback
        assert not any(map(running, pids))

    def test_in_the_same_way_as_rank_0_is_not_named(self, runs: Callable[[str], Run]) -> None:
        status, _, err = runs("same").end()
        assert status == 1
        assert err.count("ValueError: sample 17 is unreadable") == 1
        assert "rank 1" not in err

    def test_after_rank_0_was_done_still_fails_the_run(self, runs: Callable[[str], Run]) -> None:
        status, out, err = runs("late").end()
        assert (status, out) == (1, "rank 0 is done\n")
        assert err.startswith("error: rank 1 of 2 failed: ValueError: sample 17 is unreadable")


class TestARankThatLeaves:
    def test_while_rank_0_needs_it_is_named(self, runs: Callable[[str], Run]) -> None:
        status, _, err = runs("leave").end()
        assert status == 1
        assert "rank 1 of 2 has left: its program ended without an error" in err

    def test_and_one_that_never_does_is_ended_and_named(self, runs: Callable[[str], Run]) -> None:
        run = runs("hang")
        pids, (status, out, err) = run.pids(), run.end()
        assert (status, out) == (1, "rank 0 is done\n")
        assert "rank 1 still ran 5 s after rank 0 had come to its end" in err
        assert not any(map(running, pids))


class TestRankZero:
    def test_that_fails_says_so_itself(self, runs: Callable[[str], Run]) -> None:
        run = runs("own")
        pids, (status, _, err) = run.pids(), run.end()
        assert status == 1
        assert err.rstrip().endswith("KeyError: 'of rank 0'")
        assert "rank 1" not in err
        assert not any(map(running, pids))

    def test_that_is_killed_takes_the_others_with_it(self, runs: Callable[[str], Run]) -> None:
        run = runs("sleep")
        pids = run.pids()
        assert all(map(running, pids))
        os.kill(run.process.pid, signal.SIGKILL)
        assert wait_for(lambda: not any(map(running, pids)), 5.0)
        assert not list(run.folder.glob("treadle-ranks-*"))

    def test_that_is_interrupted_from_the_keyboard_takes_them_too(self, runs: Callable[[str], Run]) -> None:
        run = runs("interrupt")
        pids = run.pids()
        os.killpg(run.process.pid, signal.SIGINT)
        status, _, err = run.end()
        assert status == -signal.SIGINT
        assert err.count("KeyboardInterrupt") == 1
        assert not any(map(running, pids))


WORLD = World(size=2, local_size=2)


def meet_and_add(value: torch.Tensor) -> tuple[int, torch.Tensor]:
    dist.init_process_group("gloo")
    try:
        total = value.clone()
        dist.all_reduce(total)
        return dist.get_world_size(), total
    finally:
        dist.destroy_process_group()


def fail_on_one(error: Exception) -> None:
    dist.init_process_group("gloo")
    if dist.get_rank() == 1:
        raise error
    dist.all_reduce(torch.ones(()))


def fail_on_all() -> None:
    raise everywhere(TrainingError("the loss is nan.", why="it is.", fix="mend it."))


def exit_on_one() -> None:
    if os.environ["RANK"] == "1":
        os._exit(3)
    time.sleep(60)


def stay_on_one() -> None:
    time.sleep(60 * int(os.environ["RANK"]))


def said_by(program: str) -> tuple[str, str]:
    """What a session prints into which ``program`` is typed: output and errors."""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    return run.stdout, run.stderr


class TestASession:
    @pytest.mark.parametrize("method", ["fork", "spawn"])
    def test_gets_what_rank_0_returned(self, method: Any) -> None:
        size, total = run_in_ranks(WORLD, method, meet_and_add, torch.arange(300_000.0))
        assert size == 2
        assert torch.equal(total, 2 * torch.arange(300_000.0))

    def test_a_fork_survives_what_torch_did_before_it(self) -> None:
        program = (
            "import torch; from treadle.environments import World; from treadle.launch import run_in_ranks\n"
            "torch.set_num_threads(2)\n"
            "def work(): return float(torch.ones(3_000_000).exp().sum() * 0 + 7)\n"
            "work(); print(run_in_ranks(World(size=2, local_size=2), 'fork', work))"
        )
        assert said_by(program) == ("7.0\n", "")

    def test_a_fork_does_not_tear_down_what_is_left_of_a_process_group(self) -> None:
        """It would wait for the group's threads, which it doesn't have."""
        program = (
            "import gc, torch.distributed as dist; from treadle.environments import World\n"
            "from treadle.launch import run_in_ranks\n"
            "gc.disable()\n"
            "dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)\n"
            "loop = [dist.group.WORLD]; loop.append(loop); del loop; dist.destroy_process_group()\n"
            "def work(): return gc.collect() >= 0\n"
            "print(run_in_ranks(World(size=2, local_size=2), 'fork', work))"
        )
        assert said_by(program) == ("True\n", "")

    def test_a_rank_that_fails_is_named_with_its_traceback(self, capfd: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(DistributedError, match="rank 1 of 2 failed: ValueError: sample 17") as caught:
            run_in_ranks(WORLD, "fork", fail_on_one, ValueError("sample 17"))
        assert ", in fail_on_one" in str(caught.value)
        assert capfd.readouterr().err == ""

    def test_a_mistake_in_the_settings_arrives_as_what_it_is(self) -> None:
        mistake = ConfigError("devices=3.", why="there are two.", fix="devices=2")
        with pytest.raises(ConfigError) as caught:
            run_in_ranks(WORLD, "fork", fail_on_one, mistake)
        assert str(caught.value) == str(mistake)

    def test_what_all_ranks_raise_arrives_as_what_it_is(self) -> None:
        with pytest.raises(TrainingError, match=r"^the loss is nan\.\n"):
            run_in_ranks(WORLD, "fork", fail_on_all)

    def test_a_rank_that_just_ends_is_named_and_the_others_end(self) -> None:
        start = time.monotonic()
        with pytest.raises(DistributedError, match="rank 1 of 2 ended with exit status 3"):
            run_in_ranks(WORLD, "fork", exit_on_one)
        assert time.monotonic() - start < 20

    def test_a_rank_that_does_not_end_is_named_and_ended(self) -> None:
        with pytest.raises(DistributedError, match="rank 1 still ran 1 s after rank 0 had come to its end"):
            run_in_ranks(WORLD, "fork", stay_on_one, late=1.0)

    @pytest.mark.parametrize(
        "function, argument, named",
        [
            pytest.param(lambda value: value, 1, r"the function TestASession.<lambda>", id="function"),
            pytest.param(meet_and_add, (value for value in ()), r"argument 1 \(generator\)", id="argument"),
        ],
    )
    def test_what_cannot_be_pickled_is_named(self, function: Any, argument: Any, named: str) -> None:
        with pytest.raises(ConfigError, match=f"{named} cannot be sent to a spawned process"):
            run_in_ranks(WORLD, "spawn", function, argument)

    def test_does_not_spawn_what_only_the_session_knows(self) -> None:
        program = (
            "from treadle.environments import World; from treadle.launch import run_in_ranks\n"
            "def work(): ...\n"
            "run_in_ranks(World(size=2, local_size=2), 'spawn', work)"
        )
        assert 'ConfigError: launch "spawn" of work, which is defined in this session.' in said_by(program)[1]

    def test_does_not_fork_a_driver(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        with pytest.raises(ConfigError, match='launch "fork", but cuda is in use'):
            run_in_ranks(WORLD, "fork", meet_and_add, torch.ones(()))


class TestWhatIsInteractive:
    def test_a_file_is_not(self, tmp_path: Path) -> None:
        (tmp_path / "program.py").write_text("from treadle.launch import is_interactive; print(is_interactive())")
        run = subprocess.run(
            [sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
        )
        assert run.stdout == "False\n"

    @pytest.mark.parametrize("options", [["-c"], ["-i", "-c"]], ids=["command", "prompt"])
    def test_a_command_and_a_prompt_are(self, options: list[str]) -> None:
        program = "from treadle.launch import is_interactive; print(is_interactive())"
        run = subprocess.run(
            [sys.executable, *options, program], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
        )
        assert run.stdout == "True\n"


def listens_at(ranks: Ranks) -> set[str]:
    """The addresses, as the kernel writes them, on which somebody listens at the port of the ranks' store."""
    connections = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    ports = (fields[1].split(":") for fields in connections if fields[3] == "0A")
    return {address for address, port in ports if int(port, 16) == ranks.world.port}


class TestWhereTheRanksMeet:
    def test_is_reachable_from_this_machine_alone(self) -> None:
        """Whoever can write to their store controls the run."""
        assert on_ranks(2, listens_at)[0] == {"0100007F"}

    def test_is_said_to_be_taken(self) -> None:
        """By another program, between the choice of a port and its use."""
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            world = World(environment="a test", rank=0, size=2, local_size=2, port=other.getsockname()[1], started=True)
            with pytest.raises(DistributedError, match="can't listen at") as raised:
                Ranks(world, torch.device("cpu"), timedelta(seconds=1)).meet()
            assert "Address already in use" in str(raised.value)
