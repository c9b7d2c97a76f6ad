"""Tasks of a SLURM job step.

What SLURM sets (seen in 22.05): in the batch script SLURM_PROCID=0 and SLURM_NTASKS, but no SLURM_STEP_ID; in each task of
``srun`` also SLURM_STEP_ID and SLURM_STEP_NUM_TASKS, equal to SLURM_NTASKS; in the shell of ``salloc`` no SLURM_PROCID, or,
where it runs on a node, a step id close to 2**32; in that of ``srun --pty bash`` SLURM_PTY_PORT, which later steps inherit.
``sbatch`` in a task hands its variables on to the new job: of the task's step, and of its array.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import final

from treadle.environments.base import Variables, World
from treadle.environments.numbers import agreeing, number, port_of, require_order
from treadle.errors import ConfigError, warn

_SHELLS = ("bash", "csh", "fish", "sh", "tcsh", "zsh")
_LAST_STEP = 0xFFFF_FFF0
"""From here on, ids are not of srun's steps: an interactive shell, the batch script."""


@final
class Slurm:
    """``srun python -m my_project fit ...`` in an sbatch script, one task for each rank.

    The port is made of the job's number, unless MASTER_PORT says one; the address is the step's first host.
    """

    name = "slurm"

    def detect(self, variables: Variables) -> bool:
        return {"SLURM_JOB_ID", "SLURM_PROCID"} <= variables.keys() and not _is_shell(variables)

    def world(self, variables: Variables) -> World:
        if not in_step(variables):  # the script of the job itself, which runs once whatever it asked for
            tasks = number(variables, "SLURM_NTASKS", 1)
            if tasks > 1:
                raise ConfigError(
                    f"a SLURM job of {tasks} tasks, and this process was not started by srun.",
                    why="a job's script runs once; srun starts its tasks, which the ranks are.",
                    fix="srun python -m my_project fit ..., in the script; for one process, #SBATCH --ntasks=1.",
                )
            return World(
                environment=self.name,
                job=job_of(variables),
                restarts=restarts_of(variables),
            )
        rank, size = number(variables, "SLURM_PROCID"), number(variables, "SLURM_STEP_NUM_TASKS")
        require_order(rank, size, "SLURM_PROCID and SLURM_STEP_NUM_TASKS")
        tasks_of_node, node = tasks_per_node(variables), number(variables, "SLURM_NODEID", 0)
        require_order(node, len(tasks_of_node), "SLURM_NODEID and SLURM_STEP_TASKS_PER_NODE")
        world = World(
            environment=self.name,
            rank=rank,
            size=size,
            local_rank=number(variables, "SLURM_LOCALID", 0),
            local_size=tasks_of_node[node],
            node_rank=node,
            nodes=len(tasks_of_node),
            address=variables.get("MASTER_ADDR") or first_host(variables.get("SLURM_STEP_NODELIST", "127.0.0.1")),
            port=port_of(variables, _port(variables)),
            started=size > 1,  # a single task may start others on its node
            job=job_of(variables),
            restarts=restarts_of(variables),
        )
        return agreeing(world, variables)

    def requeue(self, variables: Variables) -> bool:
        return requeue(variables)


def requeue(variables: Variables) -> bool:
    """Queue the job again, whoever counts its ranks; False outside of jobs and, with a warning, where SLURM refuses. SLURM
    ends all processes of the job at once: save first."""
    job = _number_of_job(variables)
    if job is None:
        return False
    scontrol = shutil.which("scontrol", path=variables.get("PATH"))
    if scontrol is None:
        warn(
            "requeue",
            "scontrol is not on the path, so the SLURM job was not queued again.",
        )
        return False
    try:
        done = subprocess.run(
            [scontrol, "requeue", job],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except subprocess.TimeoutExpired:
        warn("requeue", f"scontrol requeue {job} did not answer within a minute.")
        return False
    if done.returncode:
        warn(
            "requeue",
            f"scontrol requeue {job} failed: {(done.stderr or done.stdout).strip()}. #SBATCH --requeue allows it.",
        )
    return done.returncode == 0


def in_step(variables: Variables) -> bool:
    """This is a task of an srun. What a job inherits from a task that submitted it counts other tasks than its own."""
    return number(variables, "SLURM_STEP_ID", _LAST_STEP) < _LAST_STEP and variables.get(
        "SLURM_STEP_NUM_TASKS"
    ) == variables.get("SLURM_NTASKS")


def _is_shell(variables: Variables) -> bool:
    """An interactive allocation: its shell has a job's variables and is no task of a run."""
    if "SLURM_STEP_ID" not in variables:
        return variables.get("SLURM_JOB_NAME") == "interactive"
    step = number(variables, "SLURM_STEP_ID")
    at_terminal = "SLURM_PTY_PORT" in variables and variables.get("SLURM_JOB_NAME") in _SHELLS
    return step >= _LAST_STEP or (step == 0 and at_terminal)


def job_of(variables: Variables) -> str | None:
    """None outside of jobs, and in interactive ones: many runs follow one another there."""
    job = _number_of_job(variables)
    return None if job is None or variables.get("SLURM_JOB_NAME") in (*_SHELLS, "interactive") else f"slurm-{job}"


def _number_of_job(variables: Variables) -> str | None:
    """As scontrol takes it. One task of an array has the array's own number, which stands for all of them there."""
    job = variables.get("SLURM_JOB_ID") or None
    if job and job == variables.get("SLURM_ARRAY_JOB_ID"):
        return f"{job}_{number(variables, 'SLURM_ARRAY_TASK_ID')}"
    return job


def restarts_of(variables: Variables) -> int:
    """How often SLURM has started the job again."""
    return number(variables, "SLURM_RESTART_COUNT", 0)


def _port(variables: Variables) -> int:
    """The same on all tasks of a step; two jobs, or two steps of one, on a machine rarely share it."""
    job, step = number(variables, "SLURM_JOB_ID"), number(variables, "SLURM_STEP_ID", 0)
    return 20_000 + (job * 97 + step) % 12_000


def tasks_per_node(variables: Variables) -> list[int]:
    """Of a step, by the number of the node.

    >>> tasks_per_node({"SLURM_STEP_TASKS_PER_NODE": "2(x3),1"})
    [2, 2, 2, 1]

    Raises:
        ConfigError: It is something else.
    """
    text = variables.get("SLURM_STEP_TASKS_PER_NODE", "")
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part, re.ASCII)
        if match is None:
            raise ConfigError(
                f"SLURM_STEP_TASKS_PER_NODE is {text!r}.",
                why="srun writes it as numbers of tasks: 2(x3),1.",
                fix="start the ranks with srun, and leave its variables as they are.",
            )
        found += [int(match[1])] * int(match[2] or 1)
    return found


def first_host(nodes: str) -> str:
    """The first of SLURM's list of hosts.

    >>> first_host("gpu[03-05,9],login1"), first_host("vm"), first_host("rack[1-2]n[08-09]-ib")
    ('gpu03', 'vm', 'rack1n08-ib')
    """
    first = re.split(r",(?![^\[]*\])", nodes)[0]
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", first)
