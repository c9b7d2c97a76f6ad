"""Callbacks: what happens around training without touching the model. One file each."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from treadle.callbacks.base import Callback

if TYPE_CHECKING:
    from treadle.callbacks.device_stats_monitor import DeviceStatsMonitor
    from treadle.callbacks.early_stopping import EarlyStopping
    from treadle.callbacks.exception_checkpoint import OnExceptionCheckpoint
    from treadle.callbacks.finetuning import BackboneFinetuning, BaseFinetuning
    from treadle.callbacks.gradient_accumulation_scheduler import GradientAccumulationScheduler
    from treadle.callbacks.lambda_callback import LambdaCallback
    from treadle.callbacks.learning_rate_monitor import LearningRateMonitor
    from treadle.callbacks.model_checkpoint import ModelCheckpoint
    from treadle.callbacks.model_summary import ModelSummary, summarize
    from treadle.callbacks.prediction_writer import BasePredictionWriter, PredictionWriter
    from treadle.callbacks.progress_bar import RichProgressBar
    from treadle.callbacks.pruning import ModelPruning
    from treadle.callbacks.spike_detection import SpikeDetection
    from treadle.callbacks.stochastic_weight_averaging import StochasticWeightAveraging
    from treadle.callbacks.timer import Timer
    from treadle.callbacks.weight_averaging import EMAWeightAveraging, WeightAveraging

__all__ = [
    "BackboneFinetuning",
    "BaseFinetuning",
    "BasePredictionWriter",
    "Callback",
    "DeviceStatsMonitor",
    "EMAWeightAveraging",
    "EarlyStopping",
    "GradientAccumulationScheduler",
    "LambdaCallback",
    "LearningRateMonitor",
    "ModelCheckpoint",
    "ModelPruning",
    "ModelSummary",
    "OnExceptionCheckpoint",
    "PredictionWriter",
    "RichProgressBar",
    "SpikeDetection",
    "StochasticWeightAveraging",
    "Timer",
    "WeightAveraging",
    "summarize",
]

_HOMES = {
    "BackboneFinetuning": "finetuning",
    "BaseFinetuning": "finetuning",
    "BasePredictionWriter": "prediction_writer",
    "DeviceStatsMonitor": "device_stats_monitor",
    "EMAWeightAveraging": "weight_averaging",
    "EarlyStopping": "early_stopping",
    "GradientAccumulationScheduler": "gradient_accumulation_scheduler",
    "LambdaCallback": "lambda_callback",
    "LearningRateMonitor": "learning_rate_monitor",
    "ModelCheckpoint": "model_checkpoint",
    "ModelPruning": "pruning",
    "ModelSummary": "model_summary",
    "OnExceptionCheckpoint": "exception_checkpoint",
    "PredictionWriter": "prediction_writer",
    "RichProgressBar": "progress_bar",
    "SpikeDetection": "spike_detection",
    "StochasticWeightAveraging": "stochastic_weight_averaging",
    "Timer": "timer",
    "WeightAveraging": "weight_averaging",
    "summarize": "model_summary",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"treadle.callbacks.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; this release has {', '.join(__all__)}")
