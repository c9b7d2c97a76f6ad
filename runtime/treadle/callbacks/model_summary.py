"""What a module is made of."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from treadle.batches import apply, move
from treadle.callbacks.base import Callback
from treadle.errors import ConfigError, ModuleError
from treadle.seeding import isolated_rng

if TYPE_CHECKING:
    from treadle.module import Module
    from treadle.trainer import Trainer

Size = list[Any] | str
"""The shape of a tensor; of several, a list of shapes; ``?`` of anything else."""


@final
class ModelSummary(Callback):
    """Prints a table of the module's layers on standard error, once, before training starts.

    Args:
        max_depth: How deep into submodules: 1 lists the module's own, 0 none, -1 all.

    Raises:
        ConfigError: A depth below -1.
        ModuleError: While fitting, the module fails on its ``example_input_array``.
    """

    def __init__(self, max_depth: int = 1) -> None:
        _check_depth(max_depth)
        self.max_depth = max_depth

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        # On every rank: the parts of a sharded module meet when it runs.
        with trainer.fabric.autocast():
            summary = summarize(module, self.max_depth)
        if trainer.is_global_zero:
            print(summary, file=sys.stderr, flush=True)


@final
@dataclass(frozen=True)
class Layer:
    """One line."""

    name: str
    type: str
    parameters: int
    training: bool
    in_size: Size | None = None
    out_size: Size | None = None
    """None where nothing was run."""


@final
@dataclass(frozen=True)
class Summary:
    """What ``summarize`` found. ``str()`` makes the table."""

    layers: tuple[Layer, ...]
    trainable: int
    frozen: int
    size_mb: float
    """Of all parameters, in 10^6 bytes, as they are stored."""
    training_modules: int
    eval_modules: int
    """Submodules in train mode and in eval mode; the module itself is not one."""
    uncounted: int = 0
    """Parameters whose shape is not known before the module has run."""

    @property
    def total(self) -> int:
        return self.trainable + self.frozen

    def __str__(self) -> str:
        sized = any(layer.in_size is not None for layer in self.layers)
        heads = ["name", "type", "parameters", "mode", *(["in size", "out size"] if sized else [])]
        rows = [
            [layer.name, layer.type, f"{layer.parameters:,}", "train" if layer.training else "eval"]
            + ([_shown(layer.in_size), _shown(layer.out_size)] if sized else [])
            for layer in self.layers
        ]
        counts = f"{self.trainable:,} trainable, {self.frozen:,} frozen, {self.total:,} parameters in total"
        totals = [
            f"{counts}, {self.size_mb:,.3f} MB",
            f"{self.training_modules} modules in train mode, {self.eval_modules} in eval mode",
        ]
        if self.uncounted:
            totals.append(f"not counted: {self.uncounted} parameters that take their shape from the first batch")
        return "\n".join([*(_table([heads, *rows]) if rows else []), *totals])


def summarize(module: nn.Module, max_depth: int = 1) -> Summary:
    """Count what is in ``module``. A parameter that several layers share is counted once in the total.

    If it has an ``example_input_array`` (a tensor, a tuple of arguments or a dict of them), its forward is run on that in
    eval mode and without gradients, to see the sizes. Modes, buffers, gradients and generators are as before afterwards.

    Args:
        max_depth: How deep into submodules: 1 lists the module's own, 0 none, -1 all.

    Raises:
        ConfigError: A depth below -1.
        ModuleError: The forward fails on the example.
    """
    _check_depth(max_depth)
    named = {
        name: layer
        for name, layer in module.named_modules()
        if name and (max_depth == -1 or name.count(".") < max_depth)
    }
    parameters = list(module.parameters())
    known = [parameter for parameter in parameters if not is_lazy(parameter)]
    example = getattr(module, "example_input_array", None)
    sizes = _sizes(module, named, example) if named and example is not None and len(known) == len(parameters) else {}
    layers = [
        Layer(name, type(layer).__name__, _count(layer.parameters()), layer.training, *sizes.get(name, (None, None)))
        for name, layer in named.items()
    ]
    if named and (own := _count(module.parameters(recurse=False))):
        layers.append(Layer("(its own)", "", own, module.training))
    submodules = [submodule for submodule in module.modules() if submodule is not module]
    trainable = _count(parameter for parameter in known if parameter.requires_grad)
    training = sum(submodule.training for submodule in submodules)
    return Summary(
        layers=tuple(layers),
        trainable=trainable,
        frozen=_count(known) - trainable,
        size_mb=sum(parameter.numel() * parameter.element_size() for parameter in known) / 1e6,
        training_modules=training,
        eval_modules=len(submodules) - training,
        uncounted=len(parameters) - len(known),
    )


def _sizes(module: nn.Module, layers: Mapping[str, nn.Module], example: Any) -> dict[str, tuple[Size, Size]]:
    """What goes into each layer and comes out of it when the module is first run on ``example``."""
    sizes: dict[str, tuple[Size, Size]] = dict.fromkeys(layers, ("?", "?"))
    seen: set[str] = set()

    def look(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Any, ...], settings: dict[str, Any], output: Any) -> None:
            if name not in seen:
                seen.add(name)
                taken = [*inputs, *settings.values()]
                sizes[name] = (_size(taken[0] if len(taken) == 1 else taken), _size(output))

        return hook

    with ExitStack() as undone:
        for name, layer in layers.items():
            if not isinstance(layer, torch.jit.ScriptModule):  # which takes no hooks
                undone.callback(layer.register_forward_hook(look(name), with_kwargs=True).remove)
        with _untouched(module):
            arguments, settings = _arguments(_like(module, example))
            try:
                module(*arguments, **settings)
            except Exception as error:
                raise ModuleError(
                    f"{type(module).__name__} fails on its example_input_array: {type(error).__name__}: {error}",
                    why="the summary runs it once, to see the size of what goes through each layer.",
                    fix="give it an input that forward takes, or set example_input_array = None.",
                ) from error
    return sizes


@contextmanager
def _untouched(module: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside; afterwards modes, buffers and generators are what they were."""
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    # Compiling takes minutes, and sizes are the same without.
    compiled = "torch._dynamo" in sys.modules
    module.eval()
    try:
        with (
            torch.no_grad(),  # inference_mode would leave its mark on what a forward caches for later
            isolated_rng(_device(module)),
            torch.compiler.set_stance("force_eager") if compiled else nullcontext(),
        ):
            yield
    finally:
        for submodule, training in modes:
            submodule.training = training
        for buffer, before in buffers:
            buffer.copy_(before)


def _like(module: nn.Module, example: Any) -> Any:
    """``example`` on the module's device, its floating point tensors in the module's format."""
    formats = (parameter.dtype for parameter in module.parameters() if parameter.is_floating_point())
    dtype = next(formats, torch.get_default_dtype())

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    return apply(move(example, _device(module)), cast)


def _device(module: nn.Module) -> torch.device:
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def _arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Mapping):
        return (), dict(example)
    return (tuple(example), {}) if isinstance(example, (list, tuple)) else ((example,), {})


def _size(value: Any) -> Size:
    if isinstance(value, Tensor):
        return list(value.shape)
    if isinstance(value, Mapping):
        return [_size(item) for item in value.values()]
    return [_size(item) for item in value] if isinstance(value, (list, tuple)) else "?"


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters if not is_lazy(parameter))


def _shown(size: Size | None) -> str:
    return "" if size is None else str(size).replace("'", "")


def _table(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = 2  # the column of numbers
    lines = [
        "  ".join(
            f"{cell:{'>' if i == right else '<'}{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return [line.rstrip() for line in [lines[0], "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:], ""]]


def _check_depth(max_depth: int) -> None:
    if not isinstance(max_depth, int) or isinstance(max_depth, bool) or max_depth < -1:
        raise ConfigError(
            f"max_depth={max_depth!r}.", why="it is a depth from 0, or -1 for all layers.", fix="max_depth=1"
        )
