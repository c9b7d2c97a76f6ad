"""The last good state of a run, kept on the host."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from treadle.callbacks.stochastic_weight_averaging import StochasticWeightAveraging
from treadle.callbacks.weight_averaging import WeightAveraging
from treadle.strategies.sharding import is_sharded, local_part

if TYPE_CHECKING:
    from treadle.module import Module
    from treadle.trainer import Trainer

Averages = WeightAveraging | StochasticWeightAveraging


class LastGood:
    """One copy of what optimizer steps move: parameters and buffers, the state of optimizers and schedulers, the scale of
    a precision, averaged weights. Counters, generators, the position in the data and other callbacks are not in it.

    Of sharded tensors each rank keeps its parts. The copy's memory is used again by the next.
    """

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}
        self._plain: dict[str, Any] = {}
        self.is_whole = True
        """No tensor in it is this rank's part of one."""

    def take(self, trainer: Trainer, module: Module) -> None:
        """Keep the state of now. Waits for the device."""
        kept, self._tensors = self._tensors, {}
        with torch.no_grad():
            for name, tensor in _tensors(trainer, module):
                before = kept.pop(name, None)
                if before is not None and (before.shape, before.dtype) == (tensor.shape, tensor.dtype):
                    self._tensors[name] = before.copy_(tensor)
                else:
                    self._tensors[name] = tensor.to("cpu", copy=True)
        self._plain = copy.deepcopy(_plain(trainer))
        self.is_whole = not any(is_sharded(parameter) for parameter in module.parameters())

    def bring_back(self, trainer: Trainer, module: Module) -> None:
        """Give the run the state that was kept, in place. No gradient stays."""
        _forget_later_state(trainer, set(self._tensors))
        self._bring_back_averages(trainer)
        with torch.no_grad():
            for name, tensor in _tensors(trainer, module):
                if name in self._tensors:
                    tensor.copy_(self._tensors[name])
        plain = copy.deepcopy(self._plain)
        for optimizer, groups in zip(trainer.optimizers, plain["groups"], strict=True):
            for group, saved in zip(optimizer.param_groups, groups, strict=False):  # one may have been added since
                group.update(saved)
        for optimizer, states in zip(trainer.optimizers, plain["states"], strict=True):
            for parameter, state in zip(_parameters(optimizer), states, strict=False):
                if state:
                    optimizer.state[parameter].update(state)
        for schedule, saved in zip(trainer.lr_scheduler_configs, plain["schedules"], strict=False):
            if type(schedule.scheduler).__qualname__ == saved["kind"]:  # not one that a callback put in its place
                schedule.scheduler.load_state_dict(saved["state"])
        trainer.fabric.precision.load_state_dict(plain["precision"])
        module.zero_grad()

    def _bring_back_averages(self, trainer: Trainer) -> None:
        for callback, updates in zip(_averages(trainer), self._plain["updates"], strict=True):
            if updates:
                callback._average.updates = updates
            else:
                callback._average = type(callback._average)(
                    callback._average.rule, use_buffers=callback._average.use_buffers
                )
            if isinstance(callback, WeightAveraging):
                callback._seen = trainer.global_step  # the steps since are undone, and not to be followed

    def state_dict(self) -> dict[str, Any]:
        return {"tensors": dict(self._tensors), "plain": self._plain}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._tensors = {name: tensor.clone() for name, tensor in state["tensors"].items()}
        self._plain = copy.deepcopy(state["plain"])


def _tensors(trainer: Trainer, module: Module) -> Iterator[tuple[str, Tensor]]:
    """All live tensors of the state; of sharded ones this rank's part."""
    for name, parameter in module.named_parameters():
        yield f"parameter/{name}", local_part(parameter)
    for name, buffer in module.named_buffers():
        yield f"buffer/{name}", local_part(buffer)
    for number, optimizer in enumerate(trainer.optimizers):
        for index, moved in enumerate(_parameters(optimizer)):
            for key, value in optimizer.state.get(moved, {}).items():
                if isinstance(value, Tensor):
                    yield f"optimizer/{number}/{index}/{key}", local_part(value)
        for index, group in enumerate(optimizer.param_groups):
            for key, value in group.items():
                if isinstance(value, Tensor):  # a learning rate on the device
                    yield f"group/{number}/{index}/{key}", value
    for number, callback in enumerate(_averages(trainer)):
        for name, average in callback._average.tensors.items():
            yield f"average/{number}/{name}", local_part(average)


def _plain(trainer: Trainer) -> dict[str, Any]:
    """All else."""
    return {
        "groups": [
            [
                {k: v for k, v in group.items() if k != "params" and not isinstance(v, Tensor)}
                for group in o.param_groups
            ]
            for o in trainer.optimizers
        ],
        "states": [
            [{k: v for k, v in o.state.get(p, {}).items() if not isinstance(v, Tensor)} for p in _parameters(o)]
            for o in trainer.optimizers
        ],
        "schedules": [
            {"kind": type(s.scheduler).__qualname__, "state": s.scheduler.state_dict()}
            for s in trainer.lr_scheduler_configs
        ],
        "precision": trainer.fabric.precision.state_dict(),
        "updates": [callback._average.updates for callback in _averages(trainer)],
    }


def _forget_later_state(trainer: Trainer, kept: set[str]) -> None:
    """What optimizers have begun to keep since: a first step starts anew."""
    for number, optimizer in enumerate(trainer.optimizers):
        for index, parameter in enumerate(_parameters(optimizer)):
            state = optimizer.state.get(parameter, {})
            later = [
                key
                for key, value in state.items()
                if isinstance(value, Tensor) and f"optimizer/{number}/{index}/{key}" not in kept
            ]
            if later and not any(name.startswith(f"optimizer/{number}/{index}/") for name in kept):
                del optimizer.state[parameter]
                continue
            for key in later:
                del state[key]


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _averages(trainer: Trainer) -> list[Averages]:
    return [c for c in trainer.callbacks if isinstance(c, (WeightAveraging, StochasticWeightAveraging))]
