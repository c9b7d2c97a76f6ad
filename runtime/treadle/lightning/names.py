"""Old names: where the thing behind each is, or what to use instead."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any

_PARTS = ("callbacks", "cli", "loggers", "plugins", "profilers", "strategies", "tuner", "utilities")

ROOT: Mapping[str, str] = {
    "Callback": "treadle.callbacks:Callback",
    "Fabric": "treadle.fabric:Fabric",
    "LightningDataModule": "treadle.data:DataModule",
    "LightningModule": "treadle.lightning.module:LightningModule",
    "Trainer": "treadle.lightning.trainer:Trainer",
    "read_checkpoint": "treadle.lightning.checkpoints:read_checkpoint",
    "seed_everything": "treadle.lightning.seeding:seed_everything",
    "fabric": "treadle.lightning.fabric",
    "pytorch": "treadle.lightning.pytorch",
    **{part: f"treadle.lightning.pytorch.{part}" for part in _PARTS},
}
FABRIC: Mapping[str, str] = {name: ROOT[name] for name in ("Fabric", "seed_everything")}
UTILITIES: Mapping[str, str] = {
    "CombinedLoader": "treadle.data:CombinedLoader",
    "grad_norm": "treadle.diagnostics:grad_norm",
    "isolate_rng": "treadle.seeding:isolated_rng",
    "types": "treadle.lightning.pytorch.utilities.types",
}

_COMMAND_LINE = "treadle.cli.main(MyModule, MyDataModule), a command line typed by their signatures"
_LOGGER = "CSVLogger, or a logger of your own with the methods of treadle.loggers.Logger"
_STRATEGY = "Trainer(strategy=...) with a name, or an object with the methods of treadle.strategies.Strategy"
_PRECISION = "Trainer(precision=...) with a name, or an object with the methods of treadle.precision.Precision"
_ENVIRONMENT = "nothing: torchrun, and whatever else sets RANK and WORLD_SIZE, is found out by itself"
_CHECKPOINTS = "nothing: ModelCheckpoint writes whole files or none, readable with weights_only=True"
_TUNER = "a loop of your own over short fits, Trainer(max_steps=...)"
_RANK_ZERO = "if trainer.is_global_zero: ..."
_PRINT = "trainer.print(...) or module.print(...), which print once"

INSTEAD: Mapping[str, str] = {
    "LightningCLI": _COMMAND_LINE,
    "LightningArgumentParser": _COMMAND_LINE,
    "SaveConfigCallback": "treadle.cli.main, which saves the resolved config beside each run",
    "LightningOptimizer": "torch's optimizers; module.optimizers() gives those of a run",
    # callbacks
    "BatchSizeFinder": _TUNER,
    "LearningRateFinder": _TUNER,
    "Checkpoint": "ModelCheckpoint, or a treadle.callbacks.Callback with on_savepoint",
    "ProgressBar": "RichProgressBar, or a treadle.callbacks.Callback that draws",
    "TQDMProgressBar": "RichProgressBar, whose refresh_rate counts redraws a second",
    "RichModelSummary": "ModelSummary",
    "ThroughputMonitor": "DeviceStatsMonitor, and self.log of what your module counts",
    "XLAStatsMonitor": "DeviceStatsMonitor",
    # loggers
    **dict.fromkeys(
        ("CometLogger", "LitLogger", "MLFlowLogger", "NeptuneLogger", "TensorBoardLogger", "WandbLogger"), _LOGGER
    ),
    # profilers
    "XLAProfiler": "PyTorchProfiler",
    # strategies and accelerators
    **dict.fromkeys(
        (
            "DDPStrategy",
            "DeepSpeedStrategy",
            "FSDPStrategy",
            "ModelParallelStrategy",
            "ParallelStrategy",
            "SingleDeviceStrategy",
            "SingleDeviceXLAStrategy",
            "XLAStrategy",
        ),
        _STRATEGY,
    ),
    "StrategyRegistry": "an entry point in the group treadle.strategies, see treadle.plugins",
    "accelerators": 'Trainer(accelerator="gpu")',
    # plugins
    **dict.fromkeys(
        (
            "BitsandbytesPrecision",
            "DeepSpeedPrecision",
            "DoublePrecision",
            "FSDPPrecision",
            "HalfPrecision",
            "MixedPrecision",
            "TransformerEnginePrecision",
            "XLAPrecision",
        ),
        _PRECISION,
    ),
    **dict.fromkeys(("AsyncCheckpointIO", "CheckpointIO", "TorchCheckpointIO", "XLACheckpointIO"), _CHECKPOINTS),
    **dict.fromkeys(
        (
            "ClusterEnvironment",
            "KubeflowEnvironment",
            "LSFEnvironment",
            "LightningEnvironment",
            "MPIEnvironment",
            "SLURMEnvironment",
            "TorchElasticEnvironment",
            "environments",
        ),
        _ENVIRONMENT,
    ),
    "LayerSync": "torch.nn.SyncBatchNorm.convert_sync_batchnorm(module)",
    "TorchSyncBatchNorm": "torch.nn.SyncBatchNorm.convert_sync_batchnorm(module)",
    # tuner
    "Tuner": _TUNER,
    # utilities
    "GradClipAlgorithmType": '"norm" or "value"',
    "disable_possible_user_warnings": 'warnings.filterwarnings("ignore", message=r"treadle\\[code\\]")',
    "measure_flops": "treadle.diagnostics.measure_flops",
    "move_data_to_device": "fabric.to_device(batch)",
    "rank_zero_debug": _PRINT,
    "rank_zero_deprecation": _PRINT,
    "rank_zero_info": _PRINT,
    "rank_zero_only": _RANK_ZERO,
    "rank_zero_warn": "warnings.warn(...), on rank 0: " + _RANK_ZERO,
}
"""Names there that have no equivalent of the same use here. One that gets an equivalent is found before this is read."""


def names_in(home: str) -> dict[str, str]:
    """Everything that the module ``home`` exports."""
    return {name: f"{home}:{name}" for name in importlib.import_module(home).__all__}


def found(module: str, name: str, homes: Mapping[str, str]) -> Any:
    """What is behind ``name`` of ``module``; called by the module's ``__getattr__``.

    Args:
        homes: Names to ``module:attribute``, or to a module.

    Raises:
        AttributeError: It is not here. From a ``from`` import, an ImportError if there is something to say: Python
            drops the text of the former there.
    """
    if name in homes:
        home, _, attribute = homes[name].partition(":")
        value = importlib.import_module(home)
        return getattr(value, attribute) if attribute else value
    if name not in INSTEAD:
        raise AttributeError(f"module {module!r} has no attribute {name!r}; there are {', '.join(sorted(homes))}")
    message = f"{module} has no {name}. Instead: {INSTEAD[name]}"
    if sys._getframe(2).f_code.co_name == "_handle_fromlist":  # in importlib: asks for each name of a from import
        raise ImportError(message, name=module)
    raise AttributeError(message)
