"""The ranks of a run, and what they say to one another."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar, final

import torch
from torch import Tensor

from treadle.ending import let_gloo_finish
from treadle.environments import World
from treadle.errors import ConfigError, DistributedError, TreadleError, nearest

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.distributed_c10d import Store

Reduction = Literal["mean", "sum", "min", "max"]
Value = TypeVar("Value")

_OPERATIONS = {"mean": "SUM", "sum": "SUM", "min": "MIN", "max": "MAX"}
"""What torch calls them; the mean is divided afterwards."""


@final
class Ranks:
    """All processes of a run. Every method is collective: each rank calls it, in the same order. One rank alone has
    nothing to say, and no process group.

    Args:
        world: Where this process stands.
        device: Where its tensors lie.
        timeout: How long a collective waits for the others before it fails.
    """

    def __init__(self, world: World, device: torch.device, timeout: timedelta = timedelta(minutes=10)) -> None:
        self.world, self.device, self.timeout = world, device, timeout
        self.rank, self.size = world.rank, world.size
        self.store: Store | None = None
        """Where they met; None on one rank, and where somebody else has opened the process group."""
        self.repeats = False
        """The training batch at hand is another rank's, read so that this one has any: it counts for nothing."""
        self._owned = False

    @property
    def met(self) -> bool:
        """They can talk to one another."""
        import torch.distributed as dist

        return self.size == 1 or (dist.is_available() and dist.is_initialized())

    def meet(self, *, always: bool = False) -> None:
        """Wait for the others, and open the process group; on one rank only if ``always``. One that somebody else has
        opened is used, and left open.

        Raises:
            DistributedError: Some did not come within the timeout, or the port where they were to meet is taken.
        """
        import torch.distributed as dist

        if dist.is_initialized():
            if dist.get_world_size() != self.size or dist.get_rank() != self.rank:
                raise ConfigError(
                    f"a process group of {dist.get_world_size()} ranks is open, and {self.world.environment} says "
                    f"rank {self.rank} of {self.size}.",
                    why="the two count differently.",
                    fix="leave init_process_group to treadle, or make devices= and num_nodes= agree with it.",
                )
            return
        if self.size == 1 and not always:
            return
        if self.size == 1:
            dist.init_process_group(self._backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
        else:
            try:
                self._open()
            except (dist.DistError, RuntimeError, ValueError) as error:  # torch has several for the same
                raise DistributedError(
                    f"the {self.size} ranks did not meet at {self.world.address}:{self.world.port} within "
                    f"{self.timeout.total_seconds():g} s: {_first_line(error)}.",
                    why=f"rank {self.rank} was there; each of the others must run and reach that address.",
                    fix="look at the output of the other ranks; check MASTER_ADDR, MASTER_PORT and the firewall.",
                ) from error
        self._owned = True

    def _open(self) -> None:
        import torch.distributed as dist
        from torch.distributed import distributed_c10d

        settings: dict[str, Any] = {"device_id": self.device} if self.device.type == "cuda" else {}
        # Under torch's elastic agent the store is the agent's, and what a run before a restart left is still in it.
        theirs = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        keeps_it = self.rank == 0 and not theirs
        self._tcp = dist.TCPStore(  # type: ignore[attr-defined]
            self.world.address,
            self.world.port,
            self.size,
            is_master=keeps_it,
            timeout=self.timeout,
            master_listen_fd=_socket_of_this_machine(self.world) if keeps_it else None,
        )
        self.store = distributed_c10d.PrefixStore(f"treadle/{self.world.restarts}", self._tcp)
        dist.init_process_group(
            self._backend,
            store=self.store,
            rank=self.rank,
            world_size=self.size,
            timeout=self.timeout,
            **settings,
        )

    @property
    def _backend(self) -> str:
        """Tensors on the host always have gloo, so that counters need no device."""
        import torch.distributed as dist

        if self.device.type == "cpu":
            return "gloo"
        return f"cpu:gloo,{self.device.type}:{dist.get_default_backend_for_device(self.device)}"

    def leave(self) -> None:
        """Close the process group, if :meth:`meet` opened it."""
        import torch.distributed as dist

        if self._owned and dist.is_initialized():
            dist.destroy_process_group()
            let_gloo_finish()
        self._owned = False

    def reduce(self, value: Tensor, reduction: Reduction = "mean", group: ProcessGroup | None = None) -> Tensor:
        """``value`` over the ranks of ``group`` (default: all), same shape; a new tensor where there are several.

        Raises:
            ConfigError: There is no such reduction.
        """
        if reduction not in _OPERATIONS:
            raise ConfigError(
                f"there is no reduction {reduction!r}.",
                why=f"values are reduced to their {', '.join(_OPERATIONS)}.",
                fix=nearest(str(reduction), _OPERATIONS),
            )
        if self.size == 1:
            return value
        import torch.distributed as dist

        result = value.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(result, getattr(dist.ReduceOp, _OPERATIONS[reduction]), group=group)
        return result / dist.get_world_size(group) if reduction == "mean" else result

    def gather(self, value: Tensor, *, sync_grads: bool = False, group: ProcessGroup | None = None) -> Tensor:
        """``value`` of every rank, of one shape, stacked in a new first dimension; as it is on one rank. With
        ``sync_grads``, gradients flow back to each rank."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        if sync_grads:
            gathered: Tensor = _Gathered.apply(value, self, group)  # type: ignore[no-untyped-call]
            return gathered
        parts = [
            torch.empty_like(value, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size(group))
        ]
        dist.all_gather(parts, value.detach().contiguous(), group=group)
        return torch.stack(parts)

    def total(self, value: Tensor) -> Tensor:
        """The sum of ``value`` over all ranks, same shape; gradients flow back to each rank."""
        if self.size == 1:
            return value
        summed: Tensor = _Summed.apply(value, self)  # type: ignore[no-untyped-call]
        return summed

    def gather_objects(self, value: Value, *, to: int | None = None) -> list[Value]:
        """``value`` of every rank, on all of them, or on rank ``to`` alone (the others get an empty list). For what is
        small: it is pickled."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        if to is None:
            dist.all_gather_object(found, value)
            return found
        dist.gather_object(value, found if self.rank == to else None, to)
        return found if self.rank == to else []

    def broadcast(self, value: Value, source: int = 0) -> Value:
        """``value`` of rank ``source``, on all: a tensor, or anything small that can be pickled."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        if isinstance(value, Tensor):
            result = value.detach().clone(memory_format=torch.contiguous_format)
            dist.broadcast(result, source)
            return result  # type: ignore[return-value]
        box: list[Any] = [value]
        dist.broadcast_object_list(box, source)
        received: Value = box[0]
        return received

    def barrier(self) -> None:
        """Wait for all."""
        if self.size > 1:
            self.reduce(torch.zeros((), dtype=torch.int64), "sum")

    def from_rank_zero(self, work: Callable[[], Value]) -> Value:
        """What ``work`` returns on rank 0, on all of them; or what it raised there.

        Raises:
            TreadleError: As ``work`` did on rank 0.
        """
        if self.size == 1:
            return work()
        outcome: tuple[Any, TreadleError | None] = (None, None)
        if self.rank == 0:
            try:
                outcome = (work(), None)
            except TreadleError as error:
                outcome = (None, error)
        result, raised = self.broadcast(outcome)
        if raised is not None:
            raise everywhere(raised)
        found: Value = result
        return found

    def agree(self, values: Mapping[str, object], *, fix: str) -> None:
        """Make sure that each of ``values``, anything with a ``repr``, is the same on all ranks.

        Raises:
            ConfigError: One isn't; on every rank, with what it is on two of them.
        """
        if self.size == 1:
            return
        found = self.gather_objects({name: repr(value) for name, value in values.items()})
        for rank, others in enumerate(found):
            for name in sorted({*found[0], *others}):
                ours, theirs = found[0].get(name, "not set"), others.get(name, "not set")
                if ours != theirs:
                    raise everywhere(
                        ConfigError(
                            f"the ranks were started with different settings: {name} is {ours} on rank 0 and {theirs} on "
                            f"rank {rank}.",
                            why="all ranks run the same program with the same settings.",
                            fix=fix,
                        )
                    )


class _Summed(torch.autograd.Function):
    """A sum over ranks. Each rank's value is in the result of all, so its gradient is the sum of theirs."""

    @staticmethod
    def forward(context: Any, value: Tensor, ranks: Ranks) -> Tensor:
        context.ranks = ranks
        return ranks.reduce(value, "sum")

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return context.ranks.reduce(gradients[0], "sum"), None


class _Gathered(torch.autograd.Function):
    """All ranks' values. Each is in the result of all, so its gradient is the sum of what they have for it."""

    @staticmethod
    def forward(context: Any, value: Tensor, ranks: Ranks, group: ProcessGroup | None) -> Tensor:
        context.ranks, context.group = ranks, group
        return ranks.gather(value, group=group)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        import torch.distributed as dist

        total = context.ranks.reduce(gradients[0], "sum", context.group)
        return total[dist.get_rank(context.group)], None, None


def everywhere(error: Exception) -> Exception:
    """Mark ``error`` as one that every rank raises, so that rank 0 alone need say it."""
    error.__dict__["on_every_rank"] = True
    return error


def _socket_of_this_machine(world: World) -> int | None:
    """The file descriptor of a socket that listens on loopback; None where ranks on other machines must reach the store.
    By itself torch's listens on every network, and whoever writes to it controls the run.

    Raises:
        DistributedError: Somebody else listens there.
    """
    if world.address not in ("127.0.0.1", "localhost"):
        return None
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", world.port))
            listening.listen(socket.SOMAXCONN)
        except OSError as error:
            raise DistributedError(
                f"rank 0 can't listen at {world.address}:{world.port}: {error.strerror or error}.",
                why="the ranks meet at that port, which no other program on this machine may have.",
                fix="start again; where MASTER_PORT is set, give it another number.",
            ) from error
        return listening.detach()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
