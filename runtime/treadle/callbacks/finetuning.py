"""Freeze parts of a module, and train them later in the run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, final

from torch import nn
from torch.nn import Parameter
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from treadle.callbacks.base import Callback
from treadle.errors import CheckpointError, ConfigError, ModuleError, warn

if TYPE_CHECKING:
    from treadle.module import Module
    from treadle.optim import Schedule
    from treadle.trainer import Trainer

Modules = nn.Module | Iterable[Any]
"""A module, or any nesting of several."""


class FinetuningState(TypedDict):
    epoch: int
    """The last one that ``finetune_function`` was called for."""
    added: list[list[list[str]]]
    """For each optimizer the parameters of each group that was added."""
    trainable: list[str]
    still: list[str]
    """BatchNorm layers whose statistics don't move."""


class BaseFinetuning(Callback):
    """Freezes parts of the module before training, and at the start of each epoch lets you unfreeze some.

    Derive from it, and define ``freeze_before_training`` and ``finetune_function`` with the help of :meth:`freeze` and
    :meth:`unfreeze_and_add_param_group`. An optimizer starts with what is trainable then, and has the rest added to it::

        def configure_optimizers(self):
            return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-3)

    Added groups, what is trainable, and statistics that don't move are state: a resumed run has them again before the
    optimizer's state is loaded. Schedulers take in a new group in proportion: it follows what the first group's learning
    rate does from then on.
    """

    def __init__(self) -> None:
        self._state = FinetuningState(epoch=-1, added=[], trainable=[], still=[])
        self._loaded = False
        self._initial: list[int] = []
        """The number of groups that each optimizer was made with."""

    def freeze_before_training(self, module: Module) -> None:
        """Freeze what is not to be trained at first. Called before ``configure_optimizers``."""
        raise _to_be_defined(self, "freeze_before_training(self, module)")

    def finetune_function(self, module: Module, epoch: int, optimizer: Optimizer) -> None:
        """Unfreeze what is to be trained from ``epoch`` on. Called once at the start of each, for each optimizer."""
        raise _to_be_defined(self, "finetune_function(self, module, epoch, optimizer)")

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        return dict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._state = FinetuningState(
            epoch=state["epoch"], added=state["added"], trainable=state["trainable"], still=state["still"]
        )
        self._loaded = True

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        if stage == "fit":
            self._loaded = False
            self.freeze_before_training(module)

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        self._initial = [len(optimizer.param_groups) for optimizer in trainer.optimizers]
        if self._loaded:
            self._restore(trainer, module)
        self._state = self._now(trainer, module, epoch=self._state["epoch"] if self._loaded else -1)

    def on_train_epoch_start(self, trainer: Trainer, module: Module) -> None:
        if trainer.current_epoch == self._state["epoch"]:
            return  # resumed inside it
        for optimizer in trainer.optimizers:
            groups = len(optimizer.param_groups)
            self.finetune_function(module, trainer.current_epoch, optimizer)
            take_in(trainer.lr_scheduler_configs, optimizer, groups)
        self._state = self._now(trainer, module, epoch=trainer.current_epoch)

    def _now(self, trainer: Trainer, module: Module, *, epoch: int) -> FinetuningState:
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        added = [o.param_groups[first:] for o, first in zip(trainer.optimizers, self._initial, strict=True)]
        if any(id(p) not in names for groups in added for group in groups for p in group["params"]):
            raise ModuleError(
                f"{type(self).__name__} added a parameter to an optimizer that {type(module).__name__} doesn't have.",
                why="a checkpoint names what was added, by its name in the module.",
                fix="make the layer an attribute of the module.",
            )
        return FinetuningState(
            epoch=epoch,
            added=[[[names[id(p)] for p in group["params"]] for group in groups] for groups in added],
            trainable=[name for name, parameter in module.named_parameters() if parameter.requires_grad],
            still=[
                name for name, m in module.named_modules() if isinstance(m, _BatchNorm) and not m.track_running_stats
            ],
        )

    def _restore(self, trainer: Trainer, module: Module) -> None:
        parameters = dict(module.named_parameters())
        trainable, still = set(self._state["trainable"]), set(self._state["still"])
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in trainable)
        for name, layer in module.named_modules():
            if isinstance(layer, _BatchNorm):
                layer.track_running_stats = name not in still
        for optimizer, groups in zip(trainer.optimizers, self._state["added"], strict=False):
            for names in groups:
                try:
                    add_group(optimizer, {"params": [parameters[name] for name in names]})
                except (KeyError, ValueError) as error:
                    raise CheckpointError(
                        f"{type(self).__name__} had added {', '.join(names)} to an optimizer, which can't be done again.",
                        why=f"{type(module).__name__} or its configure_optimizers is not what it was: {error}",
                        fix="return the same optimizers as when the run was saved.",
                    ) from None
                take_in(trainer.lr_scheduler_configs, optimizer, len(optimizer.param_groups) - 1)

    # --- for your own two methods ---

    @staticmethod
    def flatten_modules(modules: Modules) -> list[nn.Module]:
        """Those in ``modules`` that have no submodules or have parameters of their own."""
        if isinstance(modules, nn.Module):
            return [module for module in modules.modules() if not [*module.children()] or module._parameters]
        return [module for item in modules for module in BaseFinetuning.flatten_modules(item)]

    @staticmethod
    def filter_params(modules: Modules, train_bn: bool = True, requires_grad: bool = True) -> Iterator[Parameter]:
        """The parameters in ``modules`` that are trainable, or with ``requires_grad=False`` those that aren't.

        Args:
            train_bn: With those of BatchNorm.
        """
        for module in BaseFinetuning.flatten_modules(modules):
            if train_bn or not isinstance(module, _BatchNorm):
                yield from (p for p in module.parameters(recurse=False) if p.requires_grad == requires_grad)

    @staticmethod
    def freeze_module(module: nn.Module) -> None:
        """Freeze the parameters of ``module`` itself; BatchNorm's running statistics, too."""
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad = False
        if isinstance(module, _BatchNorm):
            module.track_running_stats = False

    @staticmethod
    def freeze(modules: Modules, train_bn: bool = True) -> None:
        """Freeze all of ``modules``, but BatchNorm with ``train_bn``."""
        for module in BaseFinetuning.flatten_modules(modules):
            if isinstance(module, _BatchNorm) and train_bn:
                BaseFinetuning.make_trainable(module)
            else:
                BaseFinetuning.freeze_module(module)

    @staticmethod
    def make_trainable(modules: Modules) -> None:
        """Undo ``freeze``."""
        for module in BaseFinetuning.flatten_modules(modules):
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad = True
            if isinstance(module, _BatchNorm):
                module.track_running_stats = True

    @staticmethod
    def filter_on_optimizer(optimizer: Optimizer, params: Iterable[Parameter]) -> list[Parameter]:
        """Those of ``params`` that ``optimizer`` doesn't have. Warns of the others."""
        params, present = list(params), _parameters_of(optimizer)
        new = [parameter for parameter in params if id(parameter) not in present]
        if len(new) < len(params):
            warn(
                "finetuning",
                f"{len(params) - len(new)} parameters to be added to the optimizer are in it already, so they keep their "
                "group and its learning rate. In configure_optimizers, pass it only what requires gradients.",
            )
        return new

    @staticmethod
    def unfreeze_and_add_param_group(
        modules: Modules,
        optimizer: Optimizer,
        lr: float | None = None,
        initial_denom_lr: float = 10.0,
        train_bn: bool = True,
    ) -> None:
        """Make ``modules`` trainable, and add a group to ``optimizer`` with what it doesn't have of them.

        Args:
            modules: What to unfreeze.
            optimizer: What is to train it.
            lr: The new group's learning rate. Default: the first group's divided by ``initial_denom_lr``.
            initial_denom_lr: See there.
            train_bn: Unfreeze BatchNorm, too.
        """
        layers = [
            module
            for module in BaseFinetuning.flatten_modules(modules)
            if train_bn or not isinstance(module, _BatchNorm)
        ]
        present = _parameters_of(optimizer)
        trained = {id(p) for p in BaseFinetuning.filter_params(layers) if id(p) in present}  # all along, as BatchNorm
        BaseFinetuning.make_trainable(layers)
        candidates = {id(p): p for layer in layers for p in layer.parameters(recurse=False) if id(p) not in trained}
        new = BaseFinetuning.filter_on_optimizer(optimizer, candidates.values())
        if new:
            rate = optimizer.param_groups[0]["lr"] / initial_denom_lr if lr is None else lr
            add_group(optimizer, {"params": new, "lr": rate})


def add_group(optimizer: Optimizer, group: dict[str, Any]) -> None:
    """``optimizer.add_param_group``, with what schedulers keep in a group as in the first, rates in proportion."""
    optimizer.add_param_group(group)
    first, ratio = optimizer.param_groups[0], _ratio(optimizer, -1)
    for key, value in first.items():
        group.setdefault(key, value * ratio if key.endswith("lr") else value)


PROPORTIONAL = ("base_lrs", "max_lrs", "_last_lr")
EQUAL = ("lr_lambdas", "base_momentums", "max_momentums")
"""What torch's schedulers keep for each parameter group: rates, and other things."""


def take_in(schedules: Sequence[Schedule], optimizer: Optimizer, groups: int) -> None:
    """Tell schedulers that were made for ``groups`` parameter groups of those that ``optimizer`` has more by now."""
    waiting = [schedule.scheduler for schedule in schedules]
    while waiting:
        scheduler = waiting.pop()
        waiting += getattr(scheduler, "_schedulers", ())
        if getattr(scheduler, "optimizer", None) is not optimizer:
            continue
        for index in range(groups, len(optimizer.param_groups)):
            for name in (*PROPORTIONAL, *EQUAL):
                if isinstance(values := getattr(scheduler, name, None), list) and len(values) == index:
                    values.append(values[0] * _ratio(optimizer, index) if name in PROPORTIONAL else values[0])


def _ratio(optimizer: Optimizer, index: int) -> float:
    first = float(optimizer.param_groups[0]["lr"])
    return float(optimizer.param_groups[index]["lr"]) / first if first else 1.0


def _parameters_of(optimizer: Optimizer) -> set[int]:
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def _to_be_defined(callback: Callback, method: str) -> ModuleError:
    return ModuleError(
        f"{type(callback).__name__} doesn't define {method.split('(')[0]}.",
        why="what to freeze, and when to train it, is said by a class derived from BaseFinetuning.",
        fix=f"def {method}: ...",
    )


def multiplicative(epoch: int) -> float:  # noqa: ARG001 - others may look at it
    """Twice the learning rate with each epoch."""
    return 2.0


@final
class BackboneFinetuning(BaseFinetuning):
    """Trains a module without its ``backbone`` at first, and with it from an epoch on, at a learning rate of its own.

    ::

        at epoch e:       backbone's rate <- ratio * rate of the first group
        at each after it: backbone's rate <- lambda_func(epoch + 1) * backbone's rate
                          backbone's rate <- min(backbone's rate, rate of the first group), with should_align

    Args:
        unfreeze_backbone_at_epoch: Its index, from 0.
        lambda_func: The factor from epoch to epoch, given the index of the next one. Default: 2.
        backbone_initial_ratio_lr: Its first learning rate as a part of the first group's; None for
            ``1 / initial_denom_lr``.
        backbone_initial_lr: Or as a number.
        should_align: Never let it be above the first group's.
        initial_denom_lr: See ``backbone_initial_ratio_lr``.
        train_bn: Train the backbone's BatchNorm, and that from the start.
        verbose: Print both rates at each epoch.
        rounding: To so many digits.

    Raises:
        ConfigError: An argument out of its range, or of no effect; while fitting: not exactly one optimizer, or one that
            has the frozen parameters already.
        ModuleError: While fitting: the module has no ``backbone``.
    """

    def __init__(
        self,
        unfreeze_backbone_at_epoch: int = 10,
        lambda_func: Callable[[int], float] = multiplicative,
        backbone_initial_ratio_lr: float | None = 0.1,
        backbone_initial_lr: float | None = None,
        should_align: bool = True,
        initial_denom_lr: float = 10.0,
        train_bn: bool = True,
        verbose: bool = False,
        rounding: int = 12,
    ) -> None:
        super().__init__()
        positive = {
            "backbone_initial_ratio_lr": backbone_initial_ratio_lr,
            "backbone_initial_lr": backbone_initial_lr,
            "initial_denom_lr": initial_denom_lr,
        }
        wrong = [f"{name}={value!r}" for name, value in positive.items() if value is not None and not value > 0]
        if unfreeze_backbone_at_epoch < 0 or wrong:
            raise ConfigError(
                f"BackboneFinetuning({', '.join([f'{unfreeze_backbone_at_epoch=}', *wrong])}).",
                why="an epoch's index is 0 or more, and rates are above 0.",
                fix="BackboneFinetuning(unfreeze_backbone_at_epoch=10)",
            )
        if initial_denom_lr != 10.0 and not (backbone_initial_ratio_lr is None is backbone_initial_lr):
            raise ConfigError(
                f"BackboneFinetuning(initial_denom_lr={initial_denom_lr}) would have no effect.",
                why="backbone_initial_ratio_lr or backbone_initial_lr says where the rate starts.",
                fix=f"backbone_initial_ratio_lr={1 / initial_denom_lr:g}",
            )
        self.unfreeze_backbone_at_epoch, self.lambda_func = unfreeze_backbone_at_epoch, lambda_func
        self.backbone_initial_ratio_lr, self.backbone_initial_lr = backbone_initial_ratio_lr, backbone_initial_lr
        self.should_align, self.initial_denom_lr, self.train_bn = should_align, initial_denom_lr, train_bn
        self.verbose, self.rounding = verbose, rounding
        self.previous_backbone_lr: float | None = None

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "previous_backbone_lr": self.previous_backbone_lr}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.previous_backbone_lr = state["previous_backbone_lr"]

    def freeze_before_training(self, module: Module) -> None:
        self.previous_backbone_lr = None
        self.freeze(self._backbone(module), train_bn=self.train_bn)

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        if len(trainer.optimizers) != 1:
            raise ConfigError(
                f"BackboneFinetuning with {len(trainer.optimizers)} optimizers.",
                why="one of them is to train the backbone.",
                fix="return one optimizer, or derive your own callback from BaseFinetuning.",
            )
        present = _parameters_of(trainer.optimizers[0])
        if any(
            id(parameter) in present for parameter in self._backbone(module).parameters() if not parameter.requires_grad
        ):
            raise ConfigError(
                "the optimizer has the frozen backbone's parameters from the start.",
                why="they get a group with a learning rate of its own when they are unfrozen.",
                fix="in configure_optimizers: AdamW([p for p in self.parameters() if p.requires_grad], lr=...)",
            )
        super().on_fit_start(trainer, module)

    def finetune_function(self, module: Module, epoch: int, optimizer: Optimizer) -> None:
        rate = float(optimizer.param_groups[0]["lr"])
        if self.previous_backbone_lr is not None:
            own = self.lambda_func(epoch + 1) * self.previous_backbone_lr
            own = min(own, rate) if self.should_align else own
            optimizer.param_groups[self._initial[0]]["lr"] = own
        elif epoch >= self.unfreeze_backbone_at_epoch:
            ratio = self.backbone_initial_ratio_lr or 1 / self.initial_denom_lr
            own = rate * ratio if self.backbone_initial_lr is None else self.backbone_initial_lr
            self.unfreeze_and_add_param_group(self._backbone(module), optimizer, own, train_bn=self.train_bn)
            if len(optimizer.param_groups) == self._initial[0]:
                return  # there was nothing to unfreeze
        else:
            return
        self.previous_backbone_lr = own
        if self.verbose:
            both = f"{round(rate, self.rounding)}, the backbone's {round(own, self.rounding)}"
            module.trainer.print(f"BackboneFinetuning: epoch {epoch}, learning rate {both}.")

    def _backbone(self, module: Module) -> nn.Module:
        backbone: Any = getattr(module, "backbone", None)
        if not isinstance(backbone, nn.Module):
            raise ModuleError(
                f"{type(module).__name__} has no backbone.",
                why="BackboneFinetuning freezes module.backbone, a torch.nn.Module, before configure_optimizers.",
                fix="self.backbone = ... in __init__",
            )
        return backbone
