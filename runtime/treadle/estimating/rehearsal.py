"""One training step of a copy without memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from treadle.batches import apply, move
from treadle.errors import ModuleError
from treadle.estimating.copying import copied, empty, reason
from treadle.estimating.layout import Layout
from treadle.estimating.ledger import Ledger, bytes_of
from treadle.estimating.standing_in import NoBook, StandIn
from treadle.loops.calling import bind
from treadle.loops.optimization import needs_closure
from treadle.module import Module
from treadle.optim import Optimizers, read_optimizers
from treadle.precision import Precision
from treadle.strategies.wrapping import checkpointed, recompute, roots_of, units_of

PASSES, STEP = "passes", "step"


@dataclass(frozen=True)
class Part:
    """The bytes that belong to one parameter."""

    name: str
    shape: tuple[int, ...]
    count: int
    trained: bool
    weight: int
    gradient: int
    state: int
    """Of the optimizer, in tensors of the parameter's shape: they are divided as it is."""
    unit: str
    """The layer with which it is gathered; empty for what is in none."""


@dataclass(kw_only=True)
class Measured:
    """What a step takes on one rank alone. None: it could not be counted, and ``problems`` say why."""

    parts: list[Part]
    buffers: int
    batch: int
    rest_of_state: int | None
    """Bytes of the optimizer's other tensors; None: its state could not be counted."""
    activations: int | None
    """Bytes that a backward pass begins with, beyond weights, gradients, optimizer state and batch."""
    copies: int
    """Of them: weights in another format, by autocast."""
    peaks: dict[str, int]
    """Bytes, in ``PASSES`` and ``STEP``."""
    flops: int | None
    """Of the passes of one micro-batch."""
    problems: list[str]


@final
class Rehearsal:
    """A copy of ``module`` whose tensors have shapes and no memory, and what its training step does with them.

    Whole numbers in the batch keep their values, so that a step may read them (lengths, indices); any other value that is
    read ends the rehearsal, and what can be counted without it is.
    """

    def __init__(self, module: nn.Module, batch: Any, *, precision: Precision, layout: Layout, keeps: bool) -> None:
        from torch._subclasses.fake_tensor import FakeTensorMode

        self.mode, self.ledger, self.precision, self.keeps = (
            FakeTensorMode(allow_non_fake_inputs=True),
            Ledger(),
            precision,
            keeps,
        )
        self.problems: list[str] = []
        self.trainer = StandIn(
            module.__dict__.get("_trainer"), backward=self._backward, step=self._step, keeps_gradients=keeps
        )
        bare = copied(module, lambda tensor: empty(tensor, "meta"))
        if isinstance(bare, Module):
            with torch.device("meta"):
                self._attach(bare)
                bare.setup("fit")
                bare.configure_model()
        bare = precision.convert(bare)
        self.module = copied(bare, self._fake)
        self._attach(self.module)
        self.units = units_of(self.module, roots_of(self.module), layout.wrap) if layout.shard > 1 else {}
        for layer, policy in checkpointed(self.module, self.units, layout.activation_checkpointing).items():
            recompute(layer, policy)
        self.batch = self._prepared(batch)
        self._optimizers: Optimizers = Optimizers()
        self._stateful = True
        """The optimizer's state could be counted."""
        self._activations: int | None = None
        self._copies = 0
        self._gradients: dict[nn.Parameter, int] = {}

    def measure(self, optimizer_of: Callable[[Any], Any] | None) -> Measured:
        """Two steps: the first makes what stays, the second is counted."""
        with ExitStack() as stack:
            stack.enter_context(_without_onednn())
            stack.enter_context(self.mode)
            self.ledger.holds([*self._weights(), *self._tensors_of_batch()])
            stack.enter_context(self.ledger)
            self._make_optimizers(optimizer_of)
            flops = None
            try:
                self._train()
                self._activations, self._copies = 0, 0
                self.ledger.restart()
                self._train()
                flops = self.ledger.flops.get(PASSES, 0)
            except Exception as error:  # noqa: BLE001 - users' code, under rules that it wasn't written for
                self.problems.append(f"activations and FLOPs could not be counted: {reason(error)}")
                self._activations = None
                self._count_without_passes()
            if self.ledger.uncounted:
                names = ", ".join(sorted(self.ledger.uncounted))
                self.problems.append(f"the FLOPs of {names} are not counted: torch has no formula for them")
            return self._measured(flops)

    # --- the step ---

    def _train(self) -> None:
        module, optimizers = self.module, self._optimizers.optimizers
        self.ledger.enter(PASSES)
        with self.precision.autocast():
            outputs = bind(module.training_step, signature_of=module.training_step)(self.batch, 0)  # type: ignore[arg-type]
        if not getattr(module, "automatic_optimization", True) or self.trains_nothing:
            return
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        if not isinstance(loss, Tensor):
            raise ModuleError(
                f"training_step returned {type(loss).__name__}.",
                why="there is no loss for this batch.",
                fix="another batch",
            )
        del outputs
        if not self.keeps:
            module.zero_grad()
        self._backward(loss)
        del loss
        for optimizer in optimizers:
            self._step(optimizer, None)

    def _backward(self, loss: Tensor, *arguments: Any, **settings: Any) -> None:
        self.ledger.enter(PASSES)
        known = [*self._weights(), *self._gradients_now(), *self._tensors_of_batch(), *self._state()]
        self._activations = max(self._activations or 0, self.ledger.beyond(known))
        self._copies = max(self._copies, self.ledger.copied())
        call = self.module.backward if isinstance(self.module, Module) else torch.autograd.backward
        call(loss, *arguments, **settings)
        for parameter in self.module.parameters():
            if parameter.grad is not None:
                self._gradients[parameter] = bytes_of([parameter.grad])

    def _step(self, optimizer: Any, closure: Callable[[], Any] | None) -> Any:
        if not self._stateful:
            return None if closure is None else closure()
        if closure is None and needs_closure(optimizer):
            return self._uncounted(optimizer, "it evaluates the loss itself, as often as it likes")
        self.ledger.enter(STEP)
        self.ledger.reads_one = closure is None  # the sizes of its state don't depend on values
        try:
            return optimizer.step() if closure is None else optimizer.step(closure)
        except Exception as error:  # noqa: BLE001 - as above
            return self._uncounted(optimizer, reason(error))
        finally:
            self.ledger.reads_one = False
            self.ledger.enter(PASSES)

    def _uncounted(self, optimizer: Any, why: str) -> None:
        self._stateful = False
        self.problems.append(f"the state of {type(optimizer).__name__} could not be counted: {why}")

    def _make_optimizers(self, optimizer_of: Callable[[Any], Any] | None) -> None:
        make = optimizer_of or (lambda module: module.configure_optimizers())
        self.trains_nothing = False
        try:
            self._optimizers = read_optimizers(make(self.module))
        except Exception as error:  # noqa: BLE001 - users' code, again
            self._stateful = False
            self.problems.append(f"the optimizer could not be made: {reason(error)}")
        else:
            self.trains_nothing = not self._optimizers.optimizers
        self.trainer.own(self._optimizers)

    def _count_without_passes(self) -> None:
        for parameter in self.module.parameters():
            if parameter.requires_grad and not self.trains_nothing:
                parameter.grad = torch.empty_like(parameter)
                self._gradients[parameter] = bytes_of([parameter.grad])
        for optimizer in self._optimizers.optimizers:
            self._step(optimizer, None)

    # --- what there is ---

    def _measured(self, flops: int | None) -> Measured:
        outer_first = sorted(self.units.items(), key=lambda item: item[1].count("."))
        owner = {parameter: name for unit, name in outer_first for parameter in unit.parameters()}
        states = self._states()
        parts, rest = [], bytes_of(t for state in states.values() for t in state)
        for name, parameter in self.module.named_parameters():
            shaped = bytes_of(t for t in states.get(parameter, ()) if t.shape == parameter.shape and t.dim())
            rest -= shaped
            gradient = self._gradients.get(parameter, 0)
            parts.append(
                Part(
                    name,
                    tuple(parameter.shape),
                    parameter.numel(),
                    parameter.requires_grad,
                    bytes_of([parameter]),
                    gradient,
                    shaped,
                    owner.get(parameter, ""),
                )
            )
        return Measured(
            parts=parts,
            buffers=bytes_of(self.module.buffers()),
            batch=bytes_of(self._tensors_of_batch()),
            rest_of_state=rest if self._stateful else None,
            activations=self._activations,
            copies=self._copies,
            peaks=dict(self.ledger.peaks) if flops is not None else {},
            flops=flops,
            problems=self.problems,
        )

    def _weights(self) -> Iterator[Tensor]:
        return chain(self.module.parameters(), self.module.buffers())

    def _gradients_now(self) -> Iterator[Tensor]:
        return (p.grad for p in self.module.parameters() if p.grad is not None)

    def _tensors_of_batch(self) -> list[Tensor]:
        return [leaf for leaf in tree_leaves(self.batch) if isinstance(leaf, Tensor)]

    def _states(self) -> dict[Any, list[Tensor]]:
        return {
            parameter: [leaf for leaf in tree_leaves(state) if isinstance(leaf, Tensor)]
            for optimizer in self._optimizers.optimizers
            for parameter, state in optimizer.state.items()
        }

    def _state(self) -> Iterator[Tensor]:
        return chain.from_iterable(self._states().values())

    # --- the copy ---

    def _attach(self, module: nn.Module) -> None:
        self.trainer.module = module
        for submodule in module.modules():
            if isinstance(submodule, Module):
                submodule.__dict__["_trainer"], submodule.__dict__["_logbook"] = self.trainer, NoBook()

    def _fake(self, tensor: Tensor) -> Tensor:
        with self.mode:
            return empty(tensor, "cpu")

    def _prepared(self, batch: Any) -> Any:
        cpu = torch.device("cpu")
        module = self.module
        batch = apply(batch, lambda tensor: self._fake(tensor) if tensor.is_meta else tensor)
        if isinstance(module, Module):
            batch = module.transfer_batch_to_device(module.on_before_batch_transfer(batch, 0), cpu, 0)
        batch = apply(move(batch, cpu, self.precision.weights), self._fake_of_batch)
        if isinstance(module, Module):
            with self.mode:
                batch = module.on_after_batch_transfer(batch, 0)
        return batch

    def _fake_of_batch(self, tensor: Tensor) -> Tensor:
        if hasattr(tensor, "fake_mode"):
            return tensor
        whole = not (tensor.is_floating_point() or tensor.is_complex())
        if whole and tensor._is_view():  # a fake of a view would not know its values
            tensor = tensor.clone()
        converter = self.mode.fake_tensor_converter
        fake: Tensor = converter.from_real_tensor(self.mode, tensor, make_constant=whole)
        return fake


@contextmanager
def _without_onednn() -> Iterator[None]:
    """oneDNN computes an LSTM as one operation, of which nobody knows the FLOPs."""
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before
