"""Every rank has all parameters; gradients are averaged while backward runs."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, cast, final
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from treadle.collectives import Ranks
from treadle.errors import ConfigError, DistributedError, nearest
from treadle.precision import Precision
from treadle.strategies.base import Share

if TYPE_CHECKING:
    from torch.nn.parallel import DistributedDataParallel

Compression = Literal["fp16", "bf16", "powersgd"]
Hook = Callable[[Any, Any], Any]
"""``hook(state, bucket) -> Future[Tensor]``, as ``DistributedDataParallel.register_comm_hook`` takes it."""


@final
class DDP:
    """``"ddp"``: torch's ``DistributedDataParallel``.

    Args:
        find_unused_parameters: Look in each step for parameters that the loss doesn't depend on. Costs a walk over the
            graph; manual optimization always does it, since each of its losses is of some parameters.
        static_graph: The graph of every step is the same; saves that walk, and allows reentrant checkpointing.
        compression: Gradients travel as ``fp16``, ``bf16``, or as matrices of low rank (``powersgd``, after its first
            1,000 steps); or your own communication hook.
        bucket_cap_mb: Megabytes of gradients that are sent together.
        broadcast_buffers: Rank 0's buffers (running statistics of batch normalization) go to all before each step.
    """

    name = "ddp"
    in_lockstep = False

    def __init__(
        self,
        *,
        find_unused_parameters: bool = False,
        static_graph: bool = False,
        compression: Compression | Hook | None = None,
        bucket_cap_mb: float = 25.0,
        broadcast_buffers: bool = True,
    ) -> None:
        if not callable(compression) and compression not in (None, "fp16", "bf16", "powersgd"):
            raise ConfigError(
                f"compression={compression!r} is unknown.",
                why="it is a format for gradients on their way, or a function.",
                fix=nearest(str(compression), ["fp16", "bf16", "powersgd"]),
            )
        self.find_unused_parameters, self.static_graph = find_unused_parameters, static_graph
        self.compression, self.bucket_cap_mb, self.broadcast_buffers = compression, bucket_cap_mb, broadcast_buffers
        self.share = Share()
        self._synced = False
        self._quiet = False

    def start(self, ranks: Ranks, precision: Precision) -> None:
        self._ranks = ranks
        self._placed: WeakKeyDictionary[nn.Module, DistributedDataParallel] = WeakKeyDictionary()
        self._trained: WeakKeyDictionary[nn.Module, list[int]] = WeakKeyDictionary()
        self.share = Share(ranks.rank, ranks.size)

    def place(self, module: nn.Module) -> nn.Module:
        """Returns a module whose forward is that of ``module``, with gradients that meet; all else is ``module``'s own."""
        if any(parameter.is_meta for parameter in module.parameters()):
            raise ConfigError(
                f"{type(module).__name__} has parameters on the meta device, with strategy='ddp'.",
                why="every rank has all of them, with memory and values.",
                fix='strategy="fsdp", which gives each rank its part; or make the module outside of torch.device("meta").',
            )
        module.to(self._ranks.device)
        if self._ranks.size == 1:
            return module
        if not any(parameter.requires_grad for parameter in module.parameters()):
            raise ConfigError(
                f"{type(module).__name__} has no parameters that are trained, with strategy='ddp'.",
                why="it averages their gradients over the ranks.",
                fix="place it without a strategy (module.to(fabric.device)), or give it parameters.",
            )
        from torch.nn.parallel import DistributedDataParallel

        device = self._ranks.device
        named = inspect.signature(DistributedDataParallel).parameters
        buffers = (
            "forward_sync_buffers" if "forward_sync_buffers" in named else "broadcast_buffers"
        )  # before torch 2.13
        wrapped = DistributedDataParallel(
            _Methods(module),
            device_ids=None if device.type == "cpu" else [device],
            find_unused_parameters=self.find_unused_parameters or not getattr(module, "automatic_optimization", True),
            static_graph=self.static_graph,
            gradient_as_bucket_view=True,
            bucket_cap_mb=self.bucket_cap_mb,
            **cast(Any, {buffers: self.broadcast_buffers}),
        )
        if self.compression is not None:
            wrapped.register_comm_hook(*self._hook())
        self._placed[module], self._trained[module] = wrapped, _trained(module)
        self._synced = False
        return Replica(module, wrapped)

    def _hook(self) -> tuple[object, Hook]:
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook

        match self.compression:
            case "fp16":
                return None, default_hooks.fp16_compress_hook
            case "bf16":
                return None, default_hooks.bf16_compress_hook
            case "powersgd":
                return powerSGD_hook.PowerSGDState(None), powerSGD_hook.powerSGD_hook
            case own:
                return None, cast(Hook, own)

    def method(self, module: nn.Module, name: str) -> Callable[..., Any]:
        wrapped = self._wrapped(module)
        if wrapped is None:
            bound: Callable[..., Any] = getattr(module, name)
            return bound
        placed = module.__dict__["_module"] if isinstance(module, Replica) else module
        if getattr(module, "automatic_optimization", True):
            return lambda *arguments, **settings: self._placed[placed](name, *arguments, **settings)

        def step(*arguments: Any, **settings: Any) -> Any:
            # Its backward passes run inside; each is announced by before_backward, and none comes after it.
            wrapped = self._placed[placed]
            wrapped.require_backward_grad_sync = False
            try:
                return wrapped(name, *arguments, **settings)
            finally:
                wrapped.require_backward_grad_sync = True

        return step

    def refresh(self, module: nn.Module) -> None:
        """Wrap anew, if other parameters are trained now than when ``module`` was placed: DDP knows only those of then."""
        wrapped = self._wrapped(module)
        if wrapped is None or _trained(module) == self._trained[module]:
            return
        for parameter in module.parameters():
            if parameter.grad is not None:  # it lies in the memory of the old one
                parameter.grad = parameter.grad.clone()
        del self._placed[module], wrapped
        gc.collect()  # takes the old one's hooks off the parameters
        self.place(module)

    def local_gradients(self, module: nn.Module) -> AbstractContextManager[Any]:
        wrapped = self._wrapped(module)
        if wrapped is None:
            return nullcontext()
        if self.static_graph and not self._synced:
            # DDP learns the graph in the first step, and fails if it doesn't communicate there.
            self._synced = True
            return nullcontext()
        return self._quietly(wrapped)

    def _quietly(self, wrapped: DistributedDataParallel) -> AbstractContextManager[Any]:
        return _Quiet(self, wrapped)

    def before_backward(self, loss: Tensor) -> None:
        """A backward pass inside of a step begins."""
        if not self._quiet:
            for wrapped in self._placed.values():
                wrapped.reducer.prepare_for_backward([loss])

    def _wrapped(self, module: nn.Module) -> DistributedDataParallel | None:
        return self._placed.get(module.__dict__["_module"] if isinstance(module, Replica) else module)


def _trained(module: nn.Module) -> list[int]:
    return [id(parameter) for parameter in module.parameters() if parameter.requires_grad]


@final
class _Quiet:
    """Around passes that don't communicate."""

    def __init__(self, strategy: DDP, wrapped: DistributedDataParallel) -> None:
        self._strategy, self._no_sync = strategy, wrapped.no_sync()

    def __enter__(self) -> None:
        self._strategy._quiet = True
        self._no_sync.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._no_sync.__exit__(*error)
        self._strategy._quiet = False


@final
class _Methods(nn.Module):
    """What DDP wraps: a module whose forward is any method of another. Only a call of its own forward makes DDP meet."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, name: str, *arguments: Any, **settings: Any) -> Any:
        if name == "forward":
            return self.module(*arguments, **settings)
        return getattr(self.module, name)(*arguments, **settings)


@final
class Replica(nn.Module):
    """A module on one of several ranks: called, its gradients meet; its names, weights and methods are its own."""

    def __init__(self, module: nn.Module, wrapped: DistributedDataParallel) -> None:
        super().__init__()
        self.__dict__["_module"], self.__dict__["_wrapped"] = module, wrapped

    def forward(self, *arguments: Any, **settings: Any) -> Any:
        return self.__dict__["_wrapped"]("forward", *arguments, **settings)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_module"], name)

    def named_modules(self, *arguments: Any, **settings: Any) -> Any:
        return self.__dict__["_module"].named_modules(*arguments, **settings)

    def named_children(self) -> Any:
        return self.__dict__["_module"].named_children()

    def state_dict(self, *arguments: Any, **settings: Any) -> Any:
        return self.__dict__["_module"].state_dict(*arguments, **settings)

    def load_state_dict(self, *arguments: Any, **settings: Any) -> Any:
        return self.__dict__["_module"].load_state_dict(*arguments, **settings)

    def train(self, mode: bool = True) -> Replica:
        self.__dict__["_module"].train(mode)
        self.training = mode
        return self

    def extra_repr(self) -> str:
        return repr(self.__dict__["_module"])


def explained(error: BaseException) -> BaseException:
    """What DDP's words for parameters without a gradient mean; any other error as it is."""
    text = str(error)
    if isinstance(error, RuntimeError) and "Expected to have finished reduction in the prior iteration" in text:
        return DistributedError(
            "some parameters got no gradient in the step before.",
            why="DDP waits for the gradient of each; the loss didn't depend on these in that step.",
            fix='strategy="ddp_find_unused_parameters_true", or freeze them: parameter.requires_grad_(False).',
        )
    return error
