"""``torch.compile`` by one flag: what of a module is compiled, and how."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import CodeType
from typing import Any, Literal, final, get_args

import torch
from torch import nn

from treadle.errors import ConfigError, nearest

What = Literal["auto", "blocks", "forward", "step"]
Mode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]


@final
@dataclass(frozen=True, kw_only=True)
class Compile:
    """What is compiled, and the settings of ``torch.compile``.

    Raises:
        ConfigError: A name is unknown, or settings contradict each other.
    """

    what: What = "auto"
    """``blocks``: each layer that repeats in a ``ModuleList``, ``ModuleDict`` or ``Sequential`` and has layers of its own.
    They share one compilation, which therefore takes as long for 100 as for 2. ``forward``: the module's parts that have
    layers of their own, each whole; without such parts, its ``forward``, which a step must then call as ``self(...)``.
    ``step``: ``training_step``, between the calls of ``self.log``. ``auto``: ``blocks``, or ``forward`` where none repeat."""
    mode: Mode | None = None
    """Of inductor."""
    fullgraph: bool = False
    """What can't be compiled whole is an error."""
    dynamic: bool | None = None
    """Sizes may change without another compilation. None: as torch finds out."""
    backend: str | Callable[..., Any] = "inductor"

    def __post_init__(self) -> None:
        _require(self.what, "what", get_args(What))
        if self.mode is None:
            return
        _require(self.mode, "mode", get_args(Mode))
        if self.backend != "inductor":
            raise ConfigError(
                f"compile mode={self.mode!r} with backend={self.backend!r}.",
                why="modes are inductor's.",
                fix='leave out mode, or backend="inductor"',
            )

    def apply(self, module: nn.Module) -> int:
        """Compile in place: names of weights stay. After activation checkpointing, before a strategy places the module.
        The work itself happens in the first calls.

        Returns:
            How many of the module's parts were compiled.

        Raises:
            ConfigError: There is nothing to compile, or the backend is unknown.
        """
        self._require_backend()
        found: list[list[nn.Module]]
        match self.what:
            case "step":
                return self._compile_step(module)
            case "auto":
                found = repeated_blocks(module) or whole_parts(module)
            case "blocks":
                found = repeated_blocks(module)
            case "forward":
                found = whole_parts(module)
        if not found:
            raise _nothing(self.what, module)
        for alike in found:
            self._compile_together(alike)
        return sum(map(len, found))

    def _compile_together(self, alike: Iterable[nn.Module]) -> None:
        """Modules of one class. ``block.compile()`` compiles nothing, and doesn't say so, if the block's forward is one of
        torch's own (a Sequential, a TransformerEncoderLayer): Dynamo starts in no frame of torch. So the frame is ours,
        and one for all of them, since compilations are kept, shared and counted by the code of their frame."""
        code: CodeType | None = None
        for block in alike:
            call = _calling(block)
            code = call.__code__ = code or call.__code__.replace(co_name=f"call_{type(block).__name__}")
            block._compiled_call_impl = self._compiled(call)

    def _compile_step(self, module: nn.Module) -> int:
        step = getattr(module, "training_step", None)
        if not callable(step):
            raise _nothing("step", module)
        if not getattr(module, "automatic_optimization", True):
            raise ConfigError(
                f'compile="step", and {type(module).__name__} optimizes manually.',
                why="its training_step calls backward and the optimizers, which are not compiled.",
                fix='compile="blocks" or "forward"',
            )
        steps: dict[str, Any] = {"training_step": self._compiled(step)}
        for name in ("log", "log_dict"):
            if hasattr(module, name):  # not traced into: a graph ends here, and the next begins
                steps[name] = torch.compiler.disable(getattr(module, name))
        module.__dict__.update(steps)
        return 1

    def _compiled(self, call: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(call, fullgraph=self.fullgraph, dynamic=self.dynamic, backend=self.backend, mode=self.mode)

    def _require_backend(self) -> None:
        if isinstance(self.backend, str):
            from torch._dynamo import list_backends

            _require(self.backend, "backend", list_backends(exclude_tags=()))


def compile_for(value: bool | str | Compile | None) -> Compile | None:
    """What a Trainer's ``compile=`` stands for: True is ``"auto"``; a name is ``Compile(what=name)``.

    >>> compile_for("blocks").what
    'blocks'
    >>> compile_for(False) is None
    True

    Raises:
        ConfigError: It is none of these.
    """
    match value:
        case None | False:
            return None
        case True:
            return Compile()
        case str() as what:
            return Compile(what=what)  # type: ignore[arg-type]
        case Compile():
            return value
        case _:
            raise ConfigError(
                f"compile={value!r}.",
                why="it is True, a name of what to compile, or Compile(...) with settings.",
                fix=f"compile=True, or one of {', '.join(map(repr, get_args(What)))}.",
            )


def repeated_blocks(module: nn.Module) -> list[list[nn.Module]]:
    """The outermost ones, in groups of one container and class. A layer without layers of its own (``Linear``, ``ReLU``) is
    no block: alone, there is nothing to fuse it with."""
    found: list[list[nn.Module]] = []
    seen: set[nn.Module] = set()

    def visit(parent: nn.Module) -> None:
        own = list(dict.fromkeys(parent.children()))
        if isinstance(parent, (nn.ModuleList, nn.ModuleDict, nn.Sequential)):
            entries = Counter(type(child) for child in parent._modules.values() if child is not None)
            groups: dict[type, list[nn.Module]] = {}
            for child in own:
                if entries[type(child)] > 1 and _has_layers(child) and child not in seen:
                    groups.setdefault(type(child), []).append(child)
            found.extend(groups.values())
            seen.update(*groups.values())
        for child in own:
            if child not in seen:
                visit(child)

    visit(module)
    return found


def whole_parts(module: nn.Module) -> list[list[nn.Module]]:
    """The direct children that have layers of their own, each in a group of its own; else the module, if it can be
    called. Metrics and losses have no weights, and are none."""
    parts = [child for child in module.children() if _has_layers(child) and any(True for _ in child.parameters())]
    if parts:
        return [[part] for part in parts]
    callable_ = getattr(type(module), "forward", None) is not nn.Module.forward and _has_layers(module)
    return [[module]] if callable_ else []


def _has_layers(module: nn.Module) -> bool:
    return any(True for _ in module.children()) and not isinstance(module, (nn.ModuleList, nn.ModuleDict))


def _calling(block: nn.Module) -> Callable[..., Any]:
    def call(*arguments: Any, **settings: Any) -> Any:
        return block._call_impl(*arguments, **settings)

    return call


def _require(name: str, setting: str, known: Iterable[str]) -> None:
    known = list(known)
    if name not in known:
        raise ConfigError(f"compile {setting}={name!r} is unknown.", why=_WHY[setting], fix=nearest(str(name), known))


_WHY = {
    "what": "it names what of a module is compiled.",
    "mode": "modes are torch.compile's.",
    "backend": "a backend is one that torch has, or a function.",
}


def _nothing(what: What, module: nn.Module) -> ConfigError:
    kind = type(module).__name__
    match what:
        case "blocks":
            return ConfigError(
                f'compile="blocks", and nothing repeats in {kind}.',
                why="a block is a layer with layers of its own, of a class that comes twice in a ModuleList, ModuleDict or "
                "Sequential.",
                fix='compile="forward"',
            )
        case "step":
            return ConfigError(
                f'compile="step", and {kind} has no training_step.',
                why="a module in a loop of one's own has only its forward.",
                fix='compile="forward"',
            )
        case _:
            return ConfigError(
                f'compile="{what}", and there is nothing to compile in {kind}.',
                why="no part of it has layers of its own, and it has no forward.",
                fix='compile="step", or leave compile out.',
            )
