"""Ranks under torch's elastic agent: ``torchrun``."""

from __future__ import annotations

from dataclasses import replace
from typing import final
from uuid import UUID

from treadle.environments import slurm
from treadle.environments.base import Variables, World
from treadle.environments.numbers import number, require_order
from treadle.environments.torch_variables import torch_world
from treadle.errors import ConfigError


@final
class Torchrun:
    """``torchrun --nproc-per-node 2 -m my_project fit ...``, on one machine or, with a rendezvous, on many."""

    name = "torchrun"

    def detect(self, variables: Variables) -> bool:
        return "TORCHELASTIC_RUN_ID" in variables

    def world(self, variables: Variables) -> World:
        _require_an_agent_a_node(variables)
        named = variables.get("TORCHELASTIC_RUN_ID", "none")
        restarts = number(variables, "TORCHELASTIC_RESTART_COUNT", 0) + slurm.restarts_of(variables)
        # "none" is what torchrun calls a job that nobody named: another may have that name as well. Its port is its own.
        job = named if named != "none" else f"{variables.get('MASTER_ADDR')}:{variables.get('MASTER_PORT')}"
        world = torch_world(variables, self.name, node="GROUP_RANK")
        nodes = number(variables, "GROUP_WORLD_SIZE", world.nodes)
        require_order(world.node_rank, nodes, "GROUP_RANK and GROUP_WORLD_SIZE")
        # A name that torchrun made up outlives the agent's restarts; that of a SLURM job outlives its requeues too.
        slurms = slurm.job_of(variables) if named == "none" or _is_made_up(named) else None
        return replace(world, job=slurms or f"torchrun-{job}", restarts=restarts, nodes=nodes)

    def requeue(self, variables: Variables) -> bool:
        return slurm.requeue(variables)  # failed ranks the agent starts again by itself


def _is_made_up(name: str) -> bool:
    try:
        return UUID(name).version == 4
    except ValueError:
        return False


def _require_an_agent_a_node(variables: Variables) -> None:
    """
    Raises:
        ConfigError: srun started several on a node that know nothing of one another: each would train the same.
    """
    if not slurm.in_step(variables):
        return
    tasks, agents = slurm.tasks_per_node(variables), number(variables, "GROUP_WORLD_SIZE", 1)
    if max(tasks) > 1 and agents != sum(tasks):
        raise ConfigError(
            f"srun started {sum(tasks)} tasks, up to {max(tasks)} on a node, and torchrun knows of {agents}.",
            why="srun starts one torchrun on each node, and torchrun the ranks there; else each trains for itself.",
            fix="srun --ntasks-per-node=1 torchrun ..., or leave torchrun out.",
        )
