"""The engine: starts the ranks, places a model, runs it, steps it. Usable alone, in anybody's own loop."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from treadle.batches import apply, move
from treadle.checkpoint.file import read_plain, write_plain
from treadle.checkpoint.remote import location
from treadle.checkpoint.sharded import write_sharded
from treadle.collectives import Ranks, Reduction
from treadle.data.parallel import ShardedLoader, Shared
from treadle.devices import Devices, chosen, device_at, kind_of
from treadle.environments import Environment, World, environment_for
from treadle.errors import CheckpointError, ConfigError
from treadle.loggers import Logger
from treadle.normalization import convert
from treadle.precision import Precision, precision_for
from treadle.seeding import capture_rng, restore_rng
from treadle.strategies import STARTS, Strategy, strategy_for
from treadle.strategies.sharding import (
    clip_to_norm,
    clip_to_value,
    load_whole_state,
    saves_shards,
    state_of,
    total_norm,
    whole,
    whole_state,
)

if TYPE_CHECKING:
    from treadle.launch import Launched

ClipAlgorithm = Literal["norm", "value"]


class Fabric:
    """Devices, ranks, strategy and precision behind a few calls. A plain loop adopts it line by line::

        fabric = Fabric(devices=2, precision="bf16-mixed")
        fabric.launch()
        model, optimizer = fabric.setup(model, optimizer)
        loader = fabric.setup_dataloaders(loader)
        for batch in loader:
            with fabric.autocast():
                loss = loss_of(model, batch)
            fabric.backward(loss)
            fabric.clip_gradients(model, max_norm=1.0)
            fabric.step(optimizer)
            optimizer.zero_grad()

    Args:
        accelerator: ``auto`` (an accelerator if the machine has one), ``cpu``, ``gpu``, ``cuda`` or ``mps``.
        devices: How many on each machine (one rank each), which ones, or ``auto``: all accelerators, one process on CPUs,
            as many as there are where the ranks were started by torchrun, SLURM or another.
        num_nodes: Machines. More than one are started by torchrun, SLURM or another.
        strategy: ``auto`` (``ddp`` on several ranks), ``single``, ``ddp``, ``fsdp``, or an object of ``treadle.strategies``
            or your own.
        precision: ``32-true``, ``bf16-mixed``, ``16-mixed``, ``bf16-true``, ``16-true``, ``64-true``, ``float8``, or your own
            ``Precision``.
        loggers: Where :meth:`log` writes to.
        timeout: How long a rank waits for the others before it fails.

    Raises:
        ConfigError: An unknown name, a device that this machine doesn't have, or numbers that contradict the environment.
    """

    def __init__(
        self,
        *,
        accelerator: str = "auto",
        devices: Devices = "auto",
        num_nodes: int = 1,
        strategy: str | Strategy = "auto",
        precision: str | int | Precision = "32-true",
        loggers: Logger | Sequence[Logger] = (),
        timeout: timedelta = timedelta(minutes=10),
    ) -> None:
        self.environment: Environment = environment_for()
        world = _launched[-1].world if _launched else self.environment.world(os.environ)
        kind = kind_of(accelerator)
        self._indices, world = _fitted(world, devices, num_nodes, kind)
        self.starts: str = STARTS.get(strategy, "script") if isinstance(strategy, str) else "script"
        """How ranks that do not run yet are started: ``script``, ``fork`` or ``spawn``."""
        self.strategy = strategy_for(strategy, world.size)
        self.device = device_at(kind, self._indices[world.local_rank])
        self.precision = precision_for(precision, self.device)
        self.ranks = Ranks(world, self.device, timeout)
        self.loggers = [loggers] if isinstance(loggers, Logger) else list(loggers)
        self.launched = False
        if world.size == 1 and not self.strategy.in_lockstep:
            self.launch()

    # --- ranks ---

    @property
    def world(self) -> World:
        """Where this process stands."""
        return self.ranks.world

    @property
    def global_rank(self) -> int:
        return self.ranks.rank

    @property
    def local_rank(self) -> int:
        """Among the ranks of this machine."""
        return self.ranks.world.local_rank

    @property
    def node_rank(self) -> int:
        return self.ranks.world.node_rank

    @property
    def world_size(self) -> int:
        return self.ranks.size

    @property
    def is_global_zero(self) -> bool:
        return self.ranks.rank == 0

    @property
    def device_indices(self) -> list[int]:
        """Of this machine's devices, those in use."""
        return list(self._indices)

    def launch(self, function: Callable[..., Any] | None = None, *arguments: Any) -> Any:
        """Start the ranks that do not run yet, and let all of them meet.

        In a script, the program is run again in a process for each other rank, up to this line; this one is rank 0. In a
        notebook or an interpreter, ``function`` is run in a new process for each rank.

        Args:
            function: What each rank is to run, called with this object and ``arguments``.
            arguments: Of ``function``.

        Returns:
            What ``function`` returned, of rank 0 where it ran in processes of its own.

        Raises:
            ConfigError: There is no function, and nothing else to run.
            DistributedError: A rank did not come, or failed.
        """
        if not self.launched:
            if self.ranks.size > 1 and not self.world.started:
                from treadle.launch import run_in_ranks, start_script

                if self.starts_elsewhere:
                    starts: Any = "fork" if self.starts == "script" else self.starts
                    if function is None:
                        raise ConfigError(
                            f"{self.ranks.size} ranks, and nothing for them to run.",
                            why="this is no script, which could be started once more for each of them.",
                            fix="put the training into a function: fabric.launch(train).",
                        )
                    return run_in_ranks(self.world, starts, _Joined(self, function), *arguments)
                started = start_script(self.world)
                _launched.append(started)
                self._stand_at(started.world)
            elif self.world.environment == "ours":
                from treadle.launch import stay_with_parent

                stay_with_parent()
            self.ranks.meet(always=self.strategy.in_lockstep)
            self.strategy.start(self.ranks, self.precision)
            self.launched = True
            self._watch()
        return None if function is None else function(self, *arguments)

    def _watch(self) -> None:
        """Until the process ends: say which rank the others wait for, if they wait for long; then part."""
        if self.ranks.store is not None:
            from treadle.watching import Watch

            watch = Watch(self.ranks.store, self.ranks.rank, self.ranks.size, position=lambda: _position[-1]())
            watch.start()
            atexit.register(self.ranks.leave)
            atexit.register(watch.stop)

    def _stand_at(self, world: World) -> None:
        self.ranks = Ranks(world, self.device, self.ranks.timeout)

    @property
    def starts_elsewhere(self) -> bool:
        """The ranks have yet to be started, and not by running a script again: :meth:`launch` needs a function."""
        if self.launched or self.ranks.size == 1 or self.world.started:
            return False
        from treadle.launch import is_interactive

        return self.starts != "script" or is_interactive()

    def failure(self, error: BaseException) -> BaseException:
        """What made the run fail, given what this rank raised: it may be another rank's failure."""
        if self.ranks.size == 1:
            return error
        from treadle.launch import note

        note(error)
        return _launched[-1].explain(error) if _launched else error

    def all_reduce(self, value: Tensor, reduction: Reduction = "mean") -> Tensor:
        """``value`` reduced over all ranks, same shape: ``mean``, ``sum``, ``min`` or ``max``.

        Raises:
            ConfigError: There is no such reduction.
        """
        return self.ranks.reduce(value, reduction)

    def all_gather(self, data: Any, *, sync_grads: bool = False) -> Any:
        """``data``, with each tensor in it from every rank, stacked in a new first dimension; as it is on one rank."""
        return apply(data, lambda tensor: self.ranks.gather(tensor, sync_grads=sync_grads))

    def broadcast(self, value: Any, source: int = 0) -> Any:
        """``value`` of rank ``source``, on all ranks: a tensor, or anything small that can be pickled."""
        return self.ranks.broadcast(value, source)

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.ranks.barrier()

    @contextmanager
    def rank_zero_first(self, local: bool = False) -> Iterator[None]:
        """Rank 0 (``local``: of each machine) is through with what is inside before the others begin: to download, say."""
        first = (self.local_rank if local else self.global_rank) == 0
        if not first:
            self.barrier()
        yield
        if first:
            self.barrier()

    # --- a model ---

    def setup(self, module: nn.Module, *optimizers: Optimizer) -> Any:
        """Place ``module`` on the device in its format, with the same weights on all ranks.

        A strategy that shards replaces the parameters: make the optimizers from them afterwards, or pass them here, where
        they are made to follow.

        Returns:
            The module to call, or ``(module, *optimizers)`` when given some.
        """
        self._require_launched("setup")
        before = list(module.parameters()) if optimizers else []
        placed = self.strategy.place(self.precision.convert(module))
        if optimizers:
            _follow(optimizers, dict(zip(map(id, before), module.parameters(), strict=True)))
        return (placed, *optimizers) if optimizers else placed

    def place_for_evaluation(self, module: nn.Module) -> None:
        """Place ``module`` where nothing is going to be trained: the weights of rank 0 on all ranks, and no reducer of
        gradients."""
        self._require_launched("place_for_evaluation")
        if self.strategy.in_lockstep or self.world_size == 1:
            self.strategy.place(self.precision.convert(module))
            return
        self.precision.convert(module).to(self.device)
        for parameter in module.parameters():
            parameter.data.copy_(self.broadcast(parameter.data))
        self.sync_buffers(module)

    def setup_dataloaders(
        self, *loaders: Any, use_distributed_sampler: bool = True, move_to_device: bool = True
    ) -> Any:
        """The same loaders, each rank reading its part: every ``world_size``-th batch of the order that rank 0 draws.

        Every rank gets equally many: in a last round that has fewer batches than ranks, one without reads another's again.
        ``loader.counts`` is what the batch taken last counts for: 1, or its share of a round of different sizes, by which
        its loss is to be multiplied; 0 for another's, which a mean over an evaluation is to leave out.

        Args:
            loaders: DataLoaders or lists of batches; any other iterable is read whole by every rank, and says so.
            use_distributed_sampler: Off: every rank reads all of it.
            move_to_device: Batches arrive on the device.

        Returns:
            One for each: iterated once an epoch, with ``state_dict`` and ``load_state_dict`` to continue inside of one.
        """
        self._require_launched("setup_dataloaders")
        shared = Shared.of(self.strategy.share, self.ranks) if use_distributed_sampler else None
        made = [ShardedLoader(loader, shared, self.to_device if move_to_device else None) for loader in loaders]
        return made[0] if len(made) == 1 else made

    def method(self, module: nn.Module, name: str) -> Callable[..., Any]:
        """``module.name`` of a module that was set up, to be called in place of its forward."""
        return self.strategy.method(module, name)

    def autocast(self) -> AbstractContextManager[Any]:
        """Around a forward pass: the precision's formats."""
        return self.precision.autocast()

    def to_device(self, batch: Any) -> Any:
        """``batch`` with every tensor in its tuples, lists, mappings and dataclasses on the device, and objects that have
        ``.to``; floating point tensors in the precision's format, if it has one for weights.

        Copies from pinned memory don't block. What lies on the device already is not copied.
        """
        return move(batch, self.device, self.precision.weights)

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of ``loss``, shape ``()``."""
        self.precision.backward(loss)

    def no_backward_sync(self, module: nn.Module, enabled: bool = True) -> AbstractContextManager[Any]:
        """Around a forward and a backward pass: they only accumulate on this rank (gradient accumulation)."""
        return self.strategy.local_gradients(module) if enabled else nullcontext()

    def clip_gradients(
        self,
        parameters: nn.Module | Iterable[Tensor],
        *,
        max_norm: float | None = None,
        clip_val: float | None = None,
        optimizer: Optimizer | None = None,
    ) -> Tensor | None:
        """Bound the gradients in place: their joint L2 norm by ``max_norm``, or each element by ``clip_val``.

        Pass ``optimizer`` when the precision scales losses. Does not sync.

        Returns:
            The norm before clipping, shape ``()``, with ``max_norm``, of the whole gradients where they are sharded; else
            None.

        Raises:
            ConfigError: Not exactly one of the two bounds.
        """
        if (max_norm is None) == (clip_val is None):
            raise ConfigError(
                f"clip_gradients(max_norm={max_norm}, clip_val={clip_val}) names not exactly one bound.",
                why="gradients are clipped by their joint norm or by their elements' values.",
                fix="pass max_norm=1.0 or clip_val=0.5.",
            )
        if optimizer is not None:
            self.precision.unscale(optimizer)
        parameters = list(parameters.parameters() if isinstance(parameters, nn.Module) else parameters)
        if clip_val is not None:
            clip_to_value(parameters, clip_val)
            return None
        assert max_norm is not None
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = total_norm(gradients) if gradients else torch.zeros((), device=self.device)
        clip_to_norm(parameters, max_norm, norm)
        return norm

    def step(self, optimizer: Optimizer) -> None:
        self.precision.step(optimizer)

    @contextmanager
    def init_module(self, empty_init: bool | None = None) -> Iterator[None]:
        """Modules made inside have their parameters on the device from the start, in the precision's format.

        Args:
            empty_init: Without memory (torch's ``meta`` device): a strategy that shards gives each rank its part, filled
                by the layers' ``reset_parameters``. Only with such a strategy.
        """
        if empty_init and not self.strategy.in_lockstep:
            raise ConfigError(
                f"init_module(empty_init=True) with strategy={self.strategy.name!r}.",
                why="nobody would give the parameters their memory and their values.",
                fix='strategy="fsdp", or leave empty_init out.',
            )
        before = torch.get_default_dtype()
        torch.set_default_dtype(self.precision.weights or before)
        try:
            with torch.device("meta") if empty_init else self.device:
                yield
        finally:
            torch.set_default_dtype(before)

    # --- a run ---

    def save(self, path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
        """Write ``state`` to one file, whole or not at all; every rank calls it, rank 0 writes. With a strategy whose
        ``state_dict_type`` is ``sharded``, every rank writes its parts.

        Args:
            path: The file, or its URL in a store (``s3://bucket/last.ckpt``, with the extra ``treadle[remote]``).
            state: Modules, optimizers and other objects with ``state_dict`` (sharded ones are gathered), tensors and plain
                values.

        Raises:
            CheckpointError: Something that a file can't hold.
            OSError: The disk is full or can't be written, or the store can't be reached or refuses.
        """
        if saves_shards(self.strategy):
            write_sharded(location(path), {key: state_of(value) for key, value in state.items()}, self.ranks)
            return
        content = {key: whole_state(value, keep=self.is_global_zero) for key, value in state.items()}
        if self.is_global_zero:
            write_plain(location(path), content)
        self.barrier()

    def load(
        self, path: str | os.PathLike[str], state: Mapping[str, Any] | None = None, *, strict: bool = True
    ) -> dict[str, Any]:
        """Read what :meth:`save` wrote, on any number of ranks and with any strategy. Nothing in it is executed.

        Args:
            path: The file or its URL; every rank reads it.
            state: The objects to load into, by the keys they were saved under.
            strict: Weights must have the module's names, all of them.

        Returns:
            What has no object in ``state``.

        Raises:
            CheckpointError: A missing or damaged file, or one that lacks a key of ``state``.
        """
        content: dict[str, Any] = read_plain(location(path))
        for key, target in (state or {}).items():
            if key not in content:
                raise CheckpointError(
                    f"{path} has nothing under {key!r}.",
                    why=f"it holds {', '.join(map(repr, content))}.",
                    fix="load it under the key it was saved with.",
                )
            load_whole_state(target, content.pop(key), strict=strict)
        return whole(content)

    def log(self, name: str, value: Any, step: int | None = None) -> None:
        """Write one metric to every logger, on rank 0. Syncs the device."""
        self.log_dict({name: value}, step)

    def log_dict(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Write a row of metrics to every logger, on rank 0. Syncs the device.

        Args:
            metrics: Numbers, or tensors with one element.
            step: Default: one more than the last.
        """
        self._logged = step if step is not None else getattr(self, "_logged", -1) + 1
        if self.is_global_zero:
            row = {name: float(value) for name, value in metrics.items()}
            for logger in self.loggers:
                logger.log_metrics(row, self._logged)

    def print(self, *values: object, **settings: Any) -> None:
        """Print once, on rank 0. ``settings`` are those of the built-in."""
        if self.is_global_zero:
            print(*values, **{"flush": True, **settings})

    def sync_batchnorm(self, module: nn.Module) -> nn.Module:
        """``module`` with its batch normalizations over the batches of all ranks; before :meth:`setup`, in place."""
        return convert(module, self.ranks) if self.world_size > 1 else module

    @contextmanager
    def same_random_numbers(self) -> Iterator[None]:
        """Inside, every rank draws what rank 0 draws; afterwards each goes on with its own. Collective."""
        if self.world_size == 1:
            yield
            return
        own = capture_rng(self.device)
        restore_rng(self.ranks.broadcast(capture_rng()))
        try:
            yield
        finally:
            if self.strategy.share.index:  # ranks of rank 0's share of the data go on as it does
                restore_rng(own)

    def sync_buffers(self, module: nn.Module) -> None:
        """Give every rank the buffers of rank 0."""
        if self.world_size > 1:
            import torch.distributed as dist
            from torch.distributed.tensor import DTensor

            for buffer in module.buffers():
                if not isinstance(buffer, DTensor):
                    dist.broadcast(buffer, 0)

    def _require_launched(self, method: str) -> None:
        if not self.launched and self.ranks.size == 1:
            self.launch()
        if not self.launched:
            raise ConfigError(
                f"fabric.{method} before fabric.launch().",
                why=f"the {self.ranks.size} ranks have yet to start and meet.",
                fix="fabric.launch() first.",
            )


_launched: list[Launched] = []
"""The ranks that this process has started, one entry: a second Fabric is among the same."""


_position: list[Callable[[], str]] = [str]


def tell_position(position: Callable[[], str]) -> None:
    """How far this rank is, for the report of a stall: ``"epoch 3, batch 12"``. Kept until another takes its place."""
    _position[-1] = position


class _Joined:
    """What a new process runs: it finds where it stands, meets the others, and runs the function."""

    def __init__(self, fabric: Fabric, function: Callable[..., Any]) -> None:
        self.fabric, self.function = fabric, function

    def __call__(self, *arguments: Any) -> Any:
        fabric = self.fabric
        world = environment_for().world(os.environ)
        fabric.device = device_at(fabric.device.type, fabric._indices[world.local_rank])
        fabric._stand_at(world)
        return fabric.launch(self.function, *arguments)


def _fitted(world: World, devices: Devices, nodes: int, kind: str) -> tuple[list[int], World]:
    """The devices of this machine that are used, and the world with as many ranks as the user asked for, where they have
    yet to be started."""
    if isinstance(nodes, bool) or not isinstance(nodes, int) or nodes < 1:
        raise ConfigError(f"num_nodes={nodes!r} makes no sense.", why="it is how many machines.", fix="num_nodes=1")
    if not world.started:
        indices = chosen(devices, kind)
        return indices, replace(world, size=len(indices) * nodes, local_size=len(indices), nodes=nodes)
    if nodes not in (1, world.nodes):
        raise ConfigError(
            f"num_nodes={nodes}, and {world.environment} started this on {world.nodes}.",
            why="whoever starts the ranks decides how many there are.",
            fix="leave num_nodes out.",
        )
    indices = list(range(world.local_size)) if devices == "auto" else chosen(devices, kind)
    if devices == "auto":
        there = len(chosen("auto", kind)) if kind != "cpu" else world.local_size
        if there < world.local_size:
            indices = [index % there for index in indices] if there == 1 else chosen(world.local_size, kind)
    if devices not in ("auto", -1) and len(indices) != world.local_size:
        raise ConfigError(
            f"devices={devices!r}, and {world.environment} started {world.local_size} ranks on this machine.",
            why="each rank has a device of its own.",
            fix=f"start as many as devices says, or leave devices out for {world.local_size}.",
        )
    return indices, world


def _follow(optimizers: Sequence[Optimizer], new: Mapping[int, nn.Parameter]) -> None:
    """Let optimizers step the parameters that took the place of those they were made from."""
    for optimizer in optimizers:
        if optimizer.state:
            moved = {id(old): value for old, value in optimizer.state.items()}
            changed = [old for old in moved if old in new and id(new[old]) != old]
            if changed:
                raise ConfigError(
                    f"{type(optimizer).__name__} has stepped before the module was set up.",
                    why="the strategy shards the parameters, and its state is of whole ones.",
                    fix="set both up first, then load the optimizer's state: fabric.load(path, {...}).",
                )
        for group in optimizer.param_groups:
            group["params"] = [new.get(id(parameter), parameter) for parameter in group["params"]]
