"""Prune a module's parameters while it trains."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from treadle.callbacks.base import Callback
from treadle.callbacks.stochastic_weight_averaging import StochasticWeightAveraging
from treadle.callbacks.weight_averaging import WeightAveraging
from treadle.errors import CheckpointError, ConfigError, ModuleError, nearest

if TYPE_CHECKING:
    from treadle.module import Module
    from treadle.trainer import Trainer

METHODS: dict[str, type[prune.BasePruningMethod]] = {
    "l1_unstructured": prune.L1Unstructured,
    "random_unstructured": prune.RandomUnstructured,
    "ln_structured": prune.LnStructured,
    "random_structured": prune.RandomStructured,
}
NAMES = ("weight", "bias")
"""What is pruned of every layer, if nothing else is said."""

Place = tuple[nn.Module, str]
"""A parameter: the layer it belongs to, and its name there."""


class ModelPruning(Callback):
    """At the end of each epoch, sets more of the parameters to zero, and keeps them there: ``torch.nn.utils.prune``.

    While it trains, a pruned ``weight`` is the product of the parameter ``weight_orig``, which the optimizer has, and the
    buffer ``weight_mask``. Checkpoints name parameters as ever: ``weight`` is the product, good for a module that was
    never pruned; originals and masks are in the callback's state, for resuming.

    What is pruned must be used by its layer's ``forward``, where the product is made: not so inside of
    ``MultiheadAttention``.

    Args:
        pruning_fn: ``l1_unstructured`` (the smallest), ``random_unstructured``, ``ln_structured`` (whole channels, the
            smallest by their norm), ``random_structured``, or a ``BasePruningMethod`` class.
        parameters_to_prune: Layers with the names of their parameters: ``[(model.head, "weight")]``. Default: those of all
            layers that are called as in ``parameter_names``.
        parameter_names: Default: ``weight`` and ``bias``.
        use_global_unstructured: Compare all parameters with each other, so that some may lose more than others; False:
            each loses its share.
        amount: How many to prune, each time, of what is left: a part (float from 0 to 1) or a number (int), or a function
            that tells it for an epoch.
        apply_pruning: Whether to prune, or a function that tells it for an epoch.
        make_pruning_permanent: After training, put the products in place of the originals, and remove the masks.
        use_lottery_ticket_hypothesis: After each pruning, set what is left to its initial value, or a function that tells
            it for an epoch.
        resample_parameters: Set it to a newly drawn value instead, by the layer's ``reset_parameters``.
        pruning_dim: Of which channels are pruned: for structured pruning.
        pruning_norm: The n of ``ln_structured``.
        verbose: Print how much is zero: 1 of all, 2 of each parameter too.
        prune_on_train_epoch_end: False: after each validation instead.

    Raises:
        ConfigError: An argument out of its range, of no effect, or that contradicts another; while fitting: nothing to
            prune, something that is pruned already, or a callback that averages the weights.
        ModuleError: While fitting: a layer without ``reset_parameters``, for ``resample_parameters``.

    Source:
        Frankle and Carbin 2019, arXiv:1803.03635, for the lottery ticket hypothesis.
    """

    def __init__(
        self,
        pruning_fn: str | type[prune.BasePruningMethod],
        parameters_to_prune: Sequence[Place] = (),
        parameter_names: Sequence[str] | None = None,
        use_global_unstructured: bool = True,
        amount: int | float | Callable[[int], int | float] = 0.5,
        apply_pruning: bool | Callable[[int], bool] = True,
        make_pruning_permanent: bool = True,
        use_lottery_ticket_hypothesis: bool | Callable[[int], bool] = True,
        resample_parameters: bool = False,
        pruning_dim: int | None = None,
        pruning_norm: int | None = None,
        verbose: int = 0,
        prune_on_train_epoch_end: bool = True,
    ) -> None:
        self.method = _method(pruning_fn)
        self.options = _options(self.method, use_global_unstructured, pruning_dim, pruning_norm)
        if not callable(amount) and not (0 <= amount <= 1 if isinstance(amount, float) else amount >= 0):
            raise ConfigError(
                f"ModelPruning(amount={amount}).",
                why="it is a part from 0.0 to 1.0 (float), a number of parameters (int), or a function of the epoch.",
                fix="amount=0.5",
            )
        if parameters_to_prune and parameter_names:
            raise ConfigError(
                f"ModelPruning(parameters_to_prune=..., parameter_names={parameter_names}).",
                why="parameters_to_prune names each parameter, so parameter_names has no effect.",
                fix="leave one of them out.",
            )
        if resample_parameters and use_lottery_ticket_hypothesis is False:
            raise ConfigError(
                "ModelPruning(resample_parameters=True, use_lottery_ticket_hypothesis=False).",
                why="the latter says that parameters go on with the values they have.",
                fix="leave one of them out.",
            )
        self.parameters_to_prune, self.parameter_names = tuple(parameters_to_prune), tuple(parameter_names or NAMES)
        self.use_global_unstructured, self.amount, self.apply_pruning = use_global_unstructured, amount, apply_pruning
        self.make_pruning_permanent = make_pruning_permanent
        self.use_lottery_ticket_hypothesis = use_lottery_ticket_hypothesis
        self.resample_parameters, self.verbose = resample_parameters, verbose
        self.prune_on_train_epoch_end = prune_on_train_epoch_end
        self._places: dict[str, Place] = {}
        """What is to be pruned, by its name in the module."""
        self._initial: dict[str, Tensor] = {}
        self._ended: dict[str, dict[str, Tensor]] | None = None
        """Originals and masks at the end of a fit that removed them; or loaded, and to be put in place."""
        self._fits = self._breaks_off = False

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        return {"initial": self._initial, **(self._ended or self._originals_and_masks())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._initial = state["initial"]
        self._ended = {"originals": state["originals"], "masks": state["masks"]}

    def on_save_checkpoint(self, trainer: Trainer, module: Module, checkpoint: dict[str, Any]) -> None:
        weights = checkpoint["state_dict"]
        for name in self._pruned():
            if f"{name}_orig" in weights:
                weights[name] = weights.pop(f"{name}_orig").detach() * weights.pop(f"{name}_mask")

    def _originals_and_masks(self) -> dict[str, dict[str, Tensor]]:
        pruned = self._pruned()
        return {
            "originals": {key: getattr(layer, f"{name}_orig").detach() for key, (layer, name) in pruned.items()},
            "masks": {key: getattr(layer, f"{name}_mask") for key, (layer, name) in pruned.items()},
        }

    def _pruned(self) -> dict[str, Place]:
        return {key: (layer, name) for key, (layer, name) in self._places.items() if _is_pruned(layer, name)}

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        if stage != "fit":
            return
        averaging = (WeightAveraging, StochasticWeightAveraging)
        if others := [type(c).__name__ for c in trainer.callbacks if isinstance(c, averaging)]:
            raise ConfigError(
                f"ModelPruning with {others[0]}.",
                why="the mean of weights that were pruned at different times is not pruned.",
                fix="keep one of them.",
            )
        if trainer.strategy.in_lockstep:
            raise ConfigError(
                f"ModelPruning with strategy={trainer.strategy.name!r}.",
                why="each rank has a part of a weight only, and what to prune is found among all of it.",
                fix='strategy="ddp"',
            )
        self._places, self._ended = self._found(module), None
        rewinds = self.use_lottery_ticket_hypothesis is not False and not self.resample_parameters
        self._initial = {
            key: getattr(layer, name).detach().clone() for key, (layer, name) in self._places.items() if rewinds
        }
        if self.resample_parameters:
            for key, (layer, _) in self._places.items():
                _require_reset(key, layer)

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        if self._ended is None:
            return
        masks, originals = self._ended["masks"], self._ended["originals"]
        if missing := sorted(masks.keys() - self._places.keys()):
            raise CheckpointError(
                f"the checkpoint has {', '.join(missing)} pruned, which this ModelPruning doesn't prune.",
                why="a run goes on with the settings it was started with.",
                fix="the same parameters_to_prune and parameter_names as when the run was saved.",
            )
        with torch.no_grad():
            for key, mask in masks.items():
                layer, name = self._places[key]
                prune.custom_from_mask(layer, name, mask.to(getattr(layer, name).device))
                getattr(layer, f"{name}_orig").copy_(originals[key])
            self._multiply()
        self._ended = None

    def _found(self, module: Module) -> dict[str, Place]:
        """What is to be pruned, by its name in the module."""
        names = {id(layer): f"{name}." if name else "" for name, layer in module.named_modules()}
        places: list[Place] = list(self.parameters_to_prune) or [
            (layer, name)
            for layer in module.modules()
            for name in self.parameter_names
            if isinstance(layer._parameters.get(name), nn.Parameter) or _is_pruned(layer, name)
        ]
        for layer, name in places:
            if id(layer) not in names or not (
                isinstance(layer._parameters.get(name), nn.Parameter) or _is_pruned(layer, name)
            ):
                raise ConfigError(
                    f"parameters_to_prune names {name!r} of a {type(layer).__name__}.",
                    why=f"{type(module).__name__} has no such parameter.",
                    fix='[(model.head, "weight")], of the same model that is passed to fit.',
                )
            if _is_pruned(layer, name):
                raise ConfigError(
                    f"{names[id(layer)]}{name} is pruned already.",
                    why="a fit starts with parameters as they are saved, without masks.",
                    fix=f'torch.nn.utils.prune.remove(layer, "{name}"), or make_pruning_permanent=True in the fit before.',
                )
        found = {f"{names[id(layer)]}{name}": (layer, name) for layer, name in places}
        shared = Counter(id(getattr(layer, name)) for layer, name in places)
        if not found or len(shared) < len(places):
            what = f"no parameter called {' or '.join(self.parameter_names)}" if not found else "a parameter twice"
            raise ConfigError(
                f"ModelPruning finds {what} in {type(module).__name__}.",
                why="it prunes at least one, and each with one mask.",
                fix='parameters_to_prune=[(model.head, "weight")]',
            )
        return found

    # --- when ---

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        self._fits, self._breaks_off = True, False

    def on_savepoint(self, trainer: Trainer, module: Module, final: bool) -> None:
        self._breaks_off = final  # inside an epoch, which goes on when the run is resumed

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        if self.prune_on_train_epoch_end and not self._breaks_off:
            self._prune(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, module: Module) -> None:
        if self._fits and not self.prune_on_train_epoch_end:
            self._prune(trainer)

    def on_train_end(self, trainer: Trainer, module: Module) -> None:
        self._fits = False
        self._make_permanent()

    def teardown(self, trainer: Trainer, module: Module, stage: str) -> None:
        if stage == "fit":  # which an exception may have ended
            self._fits = False
            self._make_permanent()

    def _make_permanent(self) -> None:
        pruned = self._pruned()
        if self.make_pruning_permanent and pruned:
            ended = self._originals_and_masks()
            ended["originals"] = {key: original.clone() for key, original in ended["originals"].items()}
            for layer, name in pruned.values():
                prune.remove(layer, name)
            self._ended = ended

    # --- how ---

    def _prune(self, trainer: Trainer) -> None:
        epoch = trainer.current_epoch
        amount = self.amount(epoch) if callable(self.amount) else self.amount
        if not amount or not (self.apply_pruning(epoch) if callable(self.apply_pruning) else self.apply_pruning):
            return
        rewinds = self.use_lottery_ticket_hypothesis
        with torch.inference_mode(False), torch.no_grad():
            self._multiply()  # what was multiplied last was before the optimizer's last step
            with trainer.fabric.same_random_numbers():
                try:
                    self._apply(amount)
                except (ValueError, TypeError, AttributeError) as error:
                    raise ConfigError(
                        f"pruning by {amount} at epoch {epoch} doesn't work.",
                        why=str(error),
                        fix="amount=0.5, for half of what is left each time.",
                    ) from error
                if rewinds(epoch) if callable(rewinds) else rewinds:
                    self._rewind()
            self._multiply()
        if self.verbose:
            self._say(trainer, epoch)

    def _apply(self, amount: int | float) -> None:
        places = list(self._places.values())
        if self.use_global_unstructured:
            prune.global_unstructured(places, self.method, amount=amount)
            return
        for layer, name in places:
            self.method.apply(layer, name, amount=amount, **self.options)

    def _multiply(self) -> None:
        """Make the products of now, as each layer's next forward will."""
        for layer, name in self._pruned().values():
            setattr(layer, name, getattr(layer, f"{name}_orig") * getattr(layer, f"{name}_mask"))

    def _rewind(self) -> None:
        """Give what is pruned its initial values, or new ones."""
        pruned = self._pruned()
        values = _redrawn(pruned) if self.resample_parameters else self._initial
        for key, (layer, name) in pruned.items():
            getattr(layer, f"{name}_orig").copy_(values[key])

    def _say(self, trainer: Trainer, epoch: int) -> None:
        masks = self._originals_and_masks()["masks"]
        zeros, sizes = {key: int((mask == 0).sum()) for key, mask in masks.items()}, {
            k: m.numel() for k, m in masks.items()
        }
        lines = [f"ModelPruning: epoch {epoch}, {sum(zeros.values())} of {sum(sizes.values())} parameters are zero."]
        if self.verbose > 1:
            lines += [f"  {key}: {zeros[key]} of {sizes[key]}" for key in masks]
        trainer.print("\n".join(lines))


def _is_pruned(layer: nn.Module, name: str) -> bool:
    return f"{name}_mask" in layer._buffers and f"{name}_orig" in layer._parameters


def _redrawn(places: dict[str, Place]) -> dict[str, Tensor]:
    """Newly drawn values of pruned parameters; their layers stay as they are."""
    drawn: dict[int, nn.Module] = {}
    for layer, _ in places.values():
        if id(layer) not in drawn:
            drawn[id(layer)] = _like(layer)
            drawn[id(layer)].reset_parameters()  # type: ignore[operator]
    return {key: getattr(drawn[id(layer)], name) for key, (layer, name) in places.items()}


def _like(layer: nn.Module) -> nn.Module:
    """A layer with tensors of its own, and plain parameters in place of pruned ones."""
    other = copy.copy(layer)
    owned = {name.removesuffix("_orig"): value for name, value in layer._parameters.items()}
    for name in owned:
        other.__dict__.pop(name, None)  # the product
    other._parameters = {k: None if v is None else nn.Parameter(torch.empty_like(v)) for k, v in owned.items()}
    other._buffers = {k: None if v is None else v.clone() for k, v in layer._buffers.items()}
    return other


def _require_reset(key: str, layer: nn.Module) -> None:
    if not callable(getattr(layer, "reset_parameters", None)):
        raise ModuleError(
            f"{key} is to be drawn anew, and {type(layer).__name__} has no reset_parameters.",
            why="resample_parameters=True asks the layer to do it.",
            fix="define reset_parameters(self), or resample_parameters=False",
        )


def _method(pruning_fn: str | type[prune.BasePruningMethod]) -> type[prune.BasePruningMethod]:
    if isinstance(pruning_fn, str) and pruning_fn.lower() in METHODS:
        return METHODS[pruning_fn.lower()]
    if isinstance(pruning_fn, type) and issubclass(pruning_fn, prune.BasePruningMethod):
        return pruning_fn
    raise ConfigError(
        f"ModelPruning({pruning_fn!r}).",
        why=f"it is one of {', '.join(METHODS)}, or a class derived from torch.nn.utils.prune.BasePruningMethod.",
        fix=nearest(pruning_fn, METHODS) if isinstance(pruning_fn, str) else 'ModelPruning("l1_unstructured")',
    )


def _options(
    method: type[prune.BasePruningMethod], globally: bool, dim: int | None, norm: int | None
) -> dict[str, int]:
    """What the method takes beside the amount."""
    structured = getattr(method, "PRUNING_TYPE", "unstructured") == "structured"
    if globally and structured:
        raise ConfigError(
            f"{method.__name__} with use_global_unstructured=True.",
            why="channels of different layers are not compared with each other.",
            fix="use_global_unstructured=False, pruning_dim=0",
        )
    if structured and dim is None:
        raise ConfigError(
            f"{method.__name__} without pruning_dim.",
            why="channels are slices of a tensor along one of its dimensions.",
            fix="pruning_dim=0, for a layer's outputs",
        )
    if (norm is None) == (method is prune.LnStructured):
        raise ConfigError(
            f"{method.__name__} with pruning_norm={norm}.",
            why="ln_structured compares channels by their norm, and needs to know which; the others don't.",
            fix="pruning_norm=2" if norm is None else "leave pruning_norm out.",
        )
    if dim is not None and not structured:
        raise ConfigError(
            f"{method.__name__} with pruning_dim={dim}.",
            why="it doesn't prune channels, so the setting has no effect.",
            fix="leave pruning_dim out.",
        )
    options = {"dim": dim, "n": norm}
    return {name: value for name, value in options.items() if value is not None}
