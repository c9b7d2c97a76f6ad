"""Every rank has a part of each parameter, its gradient and its optimizer's state; a unit is whole while it computes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import wraps
from typing import TYPE_CHECKING, Any, cast, final
from weakref import WeakKeyDictionary

import torch
from torch import nn

from treadle.collectives import Ranks
from treadle.errors import ConfigError
from treadle.precision import Precision
from treadle.strategies.base import Share
from treadle.strategies.initializing import Starting
from treadle.strategies.sharding import StateDictType, is_sharded, state_dict_type_of
from treadle.strategies.wrapping import Classes, Policy, checkpointed, recompute, roots_of, units_of

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FSDPModule

Split = Callable[[nn.Module, str], None]
"""Called with each submodule and its name, before anything of it is sharded."""


@final
class FSDP:
    """``"fsdp"``: torch's ``fully_shard`` (FSDP2), in place: names of parameters stay, and each is a ``DTensor``.

    Weights are rank 0's. A module on the ``meta`` device is drawn unit by unit, so that no rank ever holds it whole; its
    weights are those of the same module made on the device from the same seed. What the step calls must be a forward
    method: weights are gathered around it. With manual optimization that holds for each submodule of the Module.

    Args:
        wrap: Classes of the submodules that are gathered as units, or their names; by default the repeated elements of
            lists and sequences that have submodules themselves (blocks). What is in no unit is gathered for the whole
            step. Units that share a parameter are gathered with what contains them.
        reshard_after_forward: Free a unit's weights after its forward pass, and gather them again for the backward pass;
            or the number of ranks, such as those of one node, among whom they stay whole together.
        cpu_offload: Weights, gradients and optimizer state lie on the host; units are copied to the device.
        activation_checkpointing: Classes whose forward pass is computed again in the backward pass, to save its
            activations; True: the units; or a policy of ``torch.utils.checkpoint`` that decides for each operation of
            the units.
        state_dict_type: How checkpoints are saved: ``full``, gathered by rank 0 to one file; ``sharded``, each rank writes
            its parts, all at once and without gathering, to a folder that all of them must see. Either is read by any
            strategy on any number of ranks; ``python -m treadle.checkpoint consolidate`` makes one file of it.

    Raises:
        ConfigError: There is no such ``state_dict_type``.
    """

    name = "fsdp"
    in_lockstep = True

    def __init__(
        self,
        *,
        wrap: Classes | None = None,
        reshard_after_forward: bool | int = True,
        cpu_offload: bool = False,
        activation_checkpointing: bool | Classes | Policy | None = None,
        state_dict_type: StateDictType = "full",
    ) -> None:
        self.share = Share()
        self.state_dict_type = state_dict_type_of(state_dict_type)
        self._sharder = Sharder(
            wrap=wrap,
            reshard_after_forward=reshard_after_forward,
            cpu_offload=cpu_offload,
            activation_checkpointing=activation_checkpointing,
        )

    def start(self, ranks: Ranks, precision: Precision) -> None:
        from torch.distributed.device_mesh import init_device_mesh

        self.share = Share(ranks.rank, ranks.size)
        self._sharder.start(ranks, precision, init_device_mesh(ranks.device.type, (ranks.size,)))

    def place(self, module: nn.Module) -> nn.Module:
        """Returns ``module``.

        Raises:
            ConfigError: It has no parameters; a class that the settings name is nowhere in it; what is on the ``meta``
                device can't be drawn.
        """
        return self._sharder.place(module, self.name)

    def method(self, module: nn.Module, name: str) -> Callable[..., Any]:
        return self._sharder.method(module, name)

    def local_gradients(self, module: nn.Module) -> AbstractContextManager[Any]:
        """Inside, gradients accumulate whole, and ``parameter.grad`` stays None until a pass outside."""
        return self._sharder.local_gradients(module)


@final
class Sharder:
    """What :class:`FSDP` and :class:`~treadle.strategies.mesh.Mesh` do alike. Its settings are FSDP's."""

    def __init__(
        self,
        *,
        wrap: Classes | None,
        reshard_after_forward: bool | int,
        cpu_offload: bool,
        activation_checkpointing: bool | Classes | Policy | None,
    ) -> None:
        self.wrap, self.reshard_after_forward, self.cpu_offload = wrap, reshard_after_forward, cpu_offload
        self.activation_checkpointing = activation_checkpointing
        self._roots: WeakKeyDictionary[nn.Module, tuple[str, ...]] = WeakKeyDictionary()

    def start(self, ranks: Ranks, precision: Precision, mesh: DeviceMesh) -> None:
        """``mesh``: one dimension to shard over, or one to replicate and one to shard over.

        Raises:
            ConfigError: Weights can't stay whole among as many ranks as ``reshard_after_forward`` says.
        """
        shards = mesh.size(mesh.ndim - 1)
        among = self.reshard_after_forward
        if not isinstance(among, bool) and (not 1 < among < shards or shards % among):
            raise ConfigError(
                f"reshard_after_forward={among} with {shards} ranks that shard.",
                why="it is True, False, or the size of equal groups of these ranks.",
                fix=f"{', '.join(str(size) for size in range(2, shards) if shards % size == 0) or 'True'}.",
            )
        self._ranks, self._compute = ranks, precision.compute
        self._settings = self._of_torch(precision, mesh)

    def _of_torch(self, precision: Precision, mesh: DeviceMesh) -> dict[str, Any]:
        from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy

        settings: dict[str, Any] = {"mesh": mesh}
        if precision.compute is not None:
            # Inputs are left to autocast, as on a single device.
            settings["mp_policy"] = MixedPrecisionPolicy(
                param_dtype=precision.compute, reduce_dtype=torch.float32, cast_forward_inputs=False
            )
        if self.cpu_offload:
            settings["offload_policy"] = CPUOffloadPolicy(pin_memory=self._ranks.device.type != "cpu")
        return settings

    def place(self, module: nn.Module, strategy: str, split: Split | None = None, plan: object = None) -> nn.Module:
        """``plan`` is what ``split`` does, to tell one from another."""
        if next(module.parameters(), None) is None:
            raise ConfigError(
                f"{type(module).__name__} has no parameters, with strategy={strategy!r}.",
                why="it shards parameters over the ranks.",
                fix="place it without a strategy (module.to(fabric.device)), or give it parameters.",
            )
        if any(is_sharded(parameter) for parameter in module.parameters()):
            return self._place_again(module, self._description(strategy, plan))
        roots = roots_of(module)
        units = units_of(module, roots, self.wrap)
        recomputed = checkpointed(module, units, self.activation_checkpointing)
        starting = Starting(self._ranks)
        seen: set[nn.Module] = set()

        def place(submodule: nn.Module, name: str, ancestors: tuple[nn.Module, ...]) -> None:
            if submodule in seen:
                return
            seen.add(submodule)
            for key, child in submodule.named_children():
                place(child, f"{name}.{key}".lstrip("."), (*ancestors, submodule))
            starting.start(submodule, name, ancestors)
            if split is not None:
                split(submodule, name)
            if submodule in recomputed:
                recompute(submodule, recomputed[submodule])
            if submodule in units or submodule in roots or ("mp_policy" in self._settings and _needs_format(submodule)):
                self._shard(submodule, resharded=submodule is not module)

        place(module, "", ())
        self._roots[module] = tuple(roots.values())
        _PLACED[module] = (self._roots[module], self._description(strategy, plan), self._world())
        if hasattr(module, "training_step"):
            # Gradients meet by what the step returns; that its own call of forward returns a view does no harm.
            warnings.filterwarnings(
                "ignore", rf"FSDP2-wrapped module \({type(module).__name__}\) returned a view tensor", UserWarning
            )
        return module

    def _place_again(self, module: nn.Module, description: tuple[str, str]) -> nn.Module:
        """Another run, perhaps of another Trainer, with the same module: it stays as it is."""
        roots, before, world = _PLACED.get(module, ((), ("another", ""), None))
        if world is self._world() and description == before:
            self._roots[module] = roots
            return module
        raise ConfigError(
            f"{type(module).__name__} was placed by strategy={before[0]!r} with other settings or ranks.",
            why="its weights lie in parts already, and torch can't lay them out anew.",
            fix="the same strategy and precision; or load its checkpoint into a new module.",
        )

    def _description(self, strategy: str, plan: object) -> tuple[str, str]:
        mesh = self._settings["mesh"]
        policies = (self.wrap, self.reshard_after_forward, self.cpu_offload, self.activation_checkpointing)
        return strategy, repr((mesh.shape, mesh.mesh_dim_names, self._compute, policies, plan))

    def _world(self) -> object:
        import torch.distributed as dist

        return dist.group.WORLD

    def _shard(self, unit: nn.Module, *, resharded: bool) -> None:
        """The weights of a root are kept from its forward to its backward pass, which comes next. With manual optimization
        it may not: an optimizer could step between, and the weights gathered before be used again."""
        from torch.distributed.fsdp import fully_shard

        settings = dict(self._settings)
        if _needs_format(unit):
            settings.pop("mp_policy", None)
        fully_shard(unit, reshard_after_forward=self.reshard_after_forward if resharded else None, **settings)

    def method(self, module: nn.Module, name: str) -> Callable[..., Any]:
        if self._roots.get(module) != ("",):  # each submodule gathers its own
            bound: Callable[..., Any] = getattr(module, name)
            return bound
        root, call = cast("FSDPModule", module), module if name == "forward" else _gathered(module, name)

        @wraps(getattr(module, name))
        def called(*arguments: Any, **settings: Any) -> Any:
            try:
                return call(*arguments, **settings)
            except BaseException:
                with suppress(RuntimeError):  # it has nothing to reset before its first pass
                    root.reset_iter_state()  # the next attempt, as with a smaller batch, starts over
                raise
            finally:
                if not torch.is_grad_enabled():
                    self._reshard(root)  # no backward pass will

        return called

    def _reshard(self, root: FSDPModule) -> None:
        from torch.distributed.fsdp import FSDPModule

        units = [root] if self.reshard_after_forward is True else cast(nn.Module, root).modules()
        for unit in units:
            if isinstance(unit, FSDPModule):
                unit.reshard()

    @contextmanager
    def local_gradients(self, module: nn.Module) -> Iterator[None]:
        roots = self._roots_in(module)
        for root in roots:
            root.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            for root in roots:
                root.set_requires_gradient_sync(True)

    def _roots_in(self, module: nn.Module) -> list[FSDPModule]:
        """Empty for a module that was not placed."""
        return [cast("FSDPModule", module.get_submodule(name)) for name in self._roots.get(module, ())]


_PLACED: WeakKeyDictionary[nn.Module, tuple[tuple[str, ...], tuple[str, str], object]] = WeakKeyDictionary()
"""What is sharded in this process: its roots, by which settings, among which ranks. It outlives the run that did it."""


def _needs_format(module: nn.Module) -> bool:
    """Batch normalization wants its weights in the format of its running statistics: it is a unit, gathered as it is."""
    return isinstance(module, nn.modules.batchnorm._NormBase) and module.affine


def _gathered(module: nn.Module, name: str) -> Callable[..., Any]:
    """``module.name`` with the weights gathered around it. ``module`` itself stays as it was."""
    from torch.distributed.fsdp import register_fsdp_forward_method

    own = vars(module).get(name)
    register_fsdp_forward_method(module, name)
    call: Callable[..., Any] = vars(module).pop(name)
    if own is not None:
        vars(module)[name] = own
    return call
