"""Workers of Ray Train, which opens the process group itself."""

from __future__ import annotations

import sys
from typing import final

from treadle.environments.base import Variables, World
from treadle.environments.torch_variables import torch_world


@final
class Ray:
    """``TorchTrainer(train, scaling_config=ScalingConfig(num_workers=2)).fit()``."""

    name = "ray"

    def detect(self, variables: Variables) -> bool:
        return "ray.train" in sys.modules and "RANK" in variables and "RAY_JOB_ID" in variables

    def world(self, variables: Variables) -> World:
        return torch_world(variables, self.name)

    def requeue(self, variables: Variables) -> bool:
        return False  # FailureConfig says how often Ray starts again
