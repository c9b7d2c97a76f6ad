"""A real SLURM on loopback: munge, one controller and one node daemon of two CPUs, all in one folder."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import final

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"

CONF = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log

AuthType=auth/munge
# cred_expire is also how long a requeued job waits before it may start again: two minutes unless said.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SchedulerType=sched/backfill
# Seconds. A requeued job is looked at by these loops only, not at once as a new one is.
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MessageTimeout=60
ReturnToService=2
MpiDefault=none
JobFileAppend=1

# Nothing that needs cgroups.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none

NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


class SlurmFailedError(RuntimeError):
    """The daemons don't do what they should; the ends of their logs say why."""


@final
class Slurm:
    """The commands of a user of the cluster. Made by :func:`running`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": PATH}

    def call(self, *command: str | Path, **environment: str) -> str:
        """What a command of SLURM's prints.

        Raises:
            SlurmFailedError: It ended with an error.
        """
        done = subprocess.run(
            command, env=os.environ | self.environment | environment, capture_output=True, text=True, timeout=120
        )
        if done.returncode:
            raise SlurmFailedError(f"{command}: exit code {done.returncode}\n{done.stdout}{done.stderr}{self.logs()}")
        return done.stdout

    def submit(self, script: Path, *options: str, **environment: str) -> str:
        """``sbatch``; the job's id."""
        return self.call("sbatch", "--parsable", *options, script, **environment).strip()

    def facts(self, job: str) -> dict[str, str]:
        """As ``scontrol show job`` says them: ``JobState``, ``Restarts``, ``ExitCode``, ..."""
        pairs = (pair.partition("=") for pair in self.call("scontrol", "--oneliner", "show", "job", job).split())
        return {key: value for key, _, value in pairs}

    def wait(self, job: str, timeout: float = 240) -> dict[str, str]:
        """Until the job has ended, requeued or not; its facts."""
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
        until(lambda: self.facts(job)["JobState"] in ended, timeout, lambda: f"job {job} goes on:\n{self.facts(job)}")
        return self.facts(job)

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        tails = ((path.name, path.read_text(errors="replace")[-3000:]) for path in sorted(self.folder.glob("*.log")))
        return "\n".join(f"== {name}\n{text}" for name, text in tails)


@contextmanager
def running(folder: Path) -> Iterator[Slurm]:
    """A cluster that lies in ``folder``, an absolute path of at most 90 characters; nothing of it runs afterwards."""
    slurm = Slurm(folder)
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    controller, node = free_ports(2)
    host = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(CONF.format(host=host, folder=folder, controller=controller, node=node))
    files = (f"--{kind}-file={folder}/munge.{kind}" for kind in ("key", "pid", "log", "seed"))
    munged = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", "--num-threads=2", *files]
    with ExitStack() as daemons:
        daemons.enter_context(daemon(munged, slurm))
        until((folder / "munge.socket").exists, 20, slurm.logs)
        daemons.enter_context(daemon(["slurmctld", "-D", "-f", f"{folder}/slurm.conf"], slurm))
        daemons.enter_context(daemon(["slurmd", "-D", "-f", f"{folder}/slurm.conf"], slurm))
        daemons.callback(cancel_all, slurm)
        until(lambda: is_idle(slurm), 60, slurm.logs)
        yield slurm


@contextmanager
def daemon(command: Sequence[str], slurm: Slurm) -> Iterator[None]:
    """Runs while the context does, in a session of its own, so that a Ctrl-C of the tests' is not its."""
    with (slurm.folder / f"{command[0]}.out.log").open("w") as output:
        process = subprocess.Popen(
            [shutil.which(command[0], path=PATH) or command[0], *command[1:]],
            env=os.environ | slurm.environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # the controller has a child that outlives it for a moment
            process.wait()


def is_idle(slurm: Slurm) -> bool:
    """The node has registered and takes jobs; a controller that doesn't answer yet has none."""
    try:
        return slurm.call("sinfo", "--noheader", "--format=%T").strip() == "idle"
    except SlurmFailedError:
        return False


def cancel_all(slurm: Slurm) -> None:
    """A node daemon that ends leaves its jobs running: none may be left."""
    try:
        slurm.call("scancel", "--user=root", "--full", "--signal=KILL")
        slurm.call("scancel", "--user=root")
        until(lambda: not slurm.call("squeue", "--noheader").strip(), 60, slurm.logs)
    except SlurmFailedError:
        pass  # the daemons never came up, so that there are no jobs


def until(condition: Callable[[], bool], timeout: float, otherwise: Callable[[], str]) -> None:
    """Wait for something.

    Raises:
        SlurmFailedError: It didn't come, with what ``otherwise`` says.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise SlurmFailedError(f"not within {timeout:g} s.\n{otherwise()}")
        time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(closing(socket.socket())) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
