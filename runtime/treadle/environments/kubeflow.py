"""Pods of Kubeflow."""

from __future__ import annotations

from typing import final

from treadle.environments.base import Variables, World
from treadle.environments.torch_variables import torch_world
from treadle.errors import ConfigError


@final
class Kubeflow:
    """A PyTorchJob's pods, one rank each. A TrainJob's (Kubeflow Trainer 2) run torchrun, and its ranks are torchrun's."""

    name = "kubeflow"

    def detect(self, variables: Variables) -> bool:
        if "KUBERNETES_SERVICE_HOST" not in variables:
            return False
        return "LOCAL_RANK" not in variables and ("RANK" in variables or "PET_NNODES" in variables)

    def world(self, variables: Variables) -> World:
        processes = variables.get("PET_NPROC_PER_NODE", "1")
        if "RANK" not in variables or (processes.isdecimal() and int(processes) > 1):
            raise ConfigError(
                f"a pod of a job with PET_NNODES={variables.get('PET_NNODES')} and PET_NPROC_PER_NODE={processes}, and this "
                "process was not started by torchrun.",
                why="the PET_ variables are torchrun's settings; torchrun starts the ranks of each pod.",
                fix="command: [torchrun, -m, my_project, fit, ...] in the job.",
            )
        return torch_world({**variables, "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}, self.name)

    def requeue(self, variables: Variables) -> bool:
        return False  # the job's restartPolicy
