"""What ``lightning.pytorch.utilities.types`` holds: names for signatures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

STEP_OUTPUT = Tensor | Mapping[str, Any] | None
OptimizerLRScheduler = Any
LRSchedulerConfigType = Mapping[str, Any]
TRAIN_DATALOADERS = Any
EVAL_DATALOADERS = Any
