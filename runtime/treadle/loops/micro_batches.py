"""A batch that doesn't fit into memory, trained on in parts."""

from __future__ import annotations

import copy
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, final

import torch
from torch import Tensor
from torch.optim import Optimizer

from treadle.batches import apply
from treadle.collectives import everywhere
from treadle.errors import ConfigError, ModuleError
from treadle.loops.run import Run
from treadle.metric_objects import load_metric_states, metric_states
from treadle.metrics import Logbook, Number, Options, Scope
from treadle.normalization import SyncBatchNorm
from treadle.splitting import MicroBatches, dry_run, split


class Passes(Protocol):
    """What trains on a part as on a batch."""

    counts: float
    optimizer: Optimizer | None

    def accumulate_whole(self, batch: Any, batch_idx: int, planned: int, closes: bool) -> Any:
        """Forward and backward on one batch, which its loss counts :attr:`counts` times."""
        ...

    def rehearse(self, batch: Any, batch_idx: int) -> None:
        """Forward and backward that no hook, no other rank and no counter takes notice of."""
        ...

    def weight_of(self, outputs: Any) -> Number | None:
        """What a training step said its batch counts."""
        ...


@final
class InParts:
    """Trains on a batch in micro-batches, so that its step has the gradient of the undivided one.

    A part's loss counts by the part's fraction of the samples, or by the weight that the step returned for it. Hooks of
    batches see one batch, those of backward passes each part; what is logged becomes one value of the batch. Of several
    ranks, gradients meet in the last part, or in each where they lie in parts themselves.

    Args:
        size: Samples in a part; ``auto``: as many as fit on all ranks, found before the first.

    Raises:
        ConfigError: ``auto`` where a pass that breaks off would leave other ranks waiting.
    """

    def __init__(self, passes: Passes, run: Run, book: Logbook, size: int | Literal["auto"]) -> None:
        self._passes, self._run, self._book = passes, run, book
        self._finds = size == "auto"
        self.size: int | None = None if size == "auto" else size
        """None: not found yet."""
        fabric, several = run.fabric, run.fabric.world_size > 1
        synced = several and any(isinstance(module, SyncBatchNorm) for module in run.module.modules())
        if self._finds and (fabric.strategy.in_lockstep or synced):
            raise everywhere(_not_found_together("sync_batchnorm=True" if synced else f"{fabric.strategy.name!r}"))
        self._in_step = several and (fabric.strategy.in_lockstep or synced)
        """A forward pass communicates: every rank must have equally many parts."""
        self._meets_last = several and not fabric.strategy.in_lockstep

    @property
    def found(self) -> int | None:
        """The size that ``auto`` found, to be kept with the run; None where the user gave one."""
        return self.size if self._finds else None

    def resume(self, found: int | None) -> None:
        """A resumed run goes on with the size that it has found."""
        if self._finds:
            self.size = found

    def __call__(self, batch: Any, batch_idx: int, planned: int, closes: bool) -> Any:
        if self.size is None:
            self.size = self._find(batch, batch_idx)
        parts = list(MicroBatches(self.size)(batch)) or [(batch, 1.0)]
        missing = self._most(len(parts)) - len(parts) if self._in_step else 0
        if len(parts) == 1 and not missing:
            return self._passes.accumulate_whole(batch, batch_idx, planned, closes)
        return self._train([*parts, *[(parts[0][0], 0.0)] * missing], batch_idx, planned)

    def _train(self, parts: Sequence[tuple[Any, float]], batch_idx: int, planned: int) -> Any:
        """A part that counts nothing is another's again, for the other ranks' sake."""
        passes, module, progress = self._passes, self._run.module, self._run.progress
        before, counts, book = progress.window, passes.counts, module.__dict__["_logbook"]
        together = PartsBook(self._book)
        outputs: list[Any] = []
        try:
            if book is self._book:  # else nothing is logged at all
                module.__dict__["_logbook"] = together
            for index, (part, fraction) in enumerate(parts, 1):
                passes.counts = counts * fraction
                together.start(muted=not fraction)
                quiet = self._meets_last and index < len(parts)
                with self._run.fabric.no_backward_sync(module, quiet):
                    returned = passes.accumulate_whole(part, batch_idx, planned, False)
                if fraction:
                    outputs.append(apply(returned, Tensor.detach))
                returned = part = None
        finally:
            passes.counts = counts
            module.__dict__["_logbook"] = book
        skipped = [one is None for one in outputs]
        if any(skipped) and not all(skipped):
            raise _skipped_part()
        progress.window = before + (progress.window > before)
        weights = [passes.weight_of(one) for one in outputs]
        fractions = [fraction for _, fraction in parts if fraction]
        together.close(fractions, weights)
        return _outputs(outputs, fractions if weights[0] is None else weights)

    def _find(self, batch: Any, batch_idx: int) -> int:
        """Before the first step. Leaves no trace in gradients, buffers, generators, metrics."""
        run, book = self._run, self._book
        gathered = metric_states(run.module)
        muted, book.muted = book.muted, True
        try:
            found = dry_run(
                lambda part: self._passes.rehearse(part, batch_idx),
                batch,
                module=run.module,
                agree=lambda size: -self._most(-size),
                device=run.fabric.device,
                reserve=reserve_for(self._passes.optimizer) if self._passes.optimizer is not None else 0,
                restore=lambda: load_metric_states(run.module, copy.deepcopy(gathered), run.fabric.device),
            )
        finally:
            book.muted = muted
        if run.fabric.is_global_zero:
            samples = sum(part.samples for part in split(batch, found))
            parts = -(-samples // found)
            what = "the whole batch fits" if parts == 1 else f"{parts} for a batch of {samples}"
            print(f"treadle: micro_batch_size={found} found: {what}", file=sys.stderr, flush=True)
        return found

    def _most(self, number: int) -> int:
        return int(self._run.fabric.ranks.reduce(torch.tensor(number), "max"))


@dataclass(eq=False)
class Entry:
    """What the parts of a batch logged in one call of ``self.log``."""

    scope: Scope | None
    name: str
    options: tuple[Any, ...]
    parts: list[int] = field(default_factory=list)
    """Where it was called."""
    values: list[Number] = field(default_factory=list)
    sizes: list[Any] = field(default_factory=list)
    """``batch_size`` as given."""

    @property
    def in_step(self) -> bool:
        """Logged by ``training_step``, which may say what its part weighs."""
        return self.scope is not None and self.scope.hook == "training_step"

    def merged(self, fractions: Sequence[float], weights: Sequence[Number | None]) -> tuple[Number, Any]:
        """The value of the batch, and its size if the calls gave one."""
        given = all(size is not None for size in self.sizes)
        match Options(*self.options).by_name().reduce_fx:
            case "sum":
                value = total(self.values)
            case "min" | "max" as kind:
                value = getattr(torch.stack(list(map(torch.as_tensor, self.values))), kind)()
            case _:
                by = self.sizes if given else [fractions[part] for part in self.parts]
                if not given and self.in_step and weights[0] is not None:
                    by = [weights[part] for part in self.parts]
                value = mean(self.values, by)
        return value, total(self.sizes) if given else None


@final
class PartsBook:
    """Stands for the logbook while a batch is trained on in parts: each name gets the one value that the batch has.

    A mean is weighted by the parts' samples, their ``batch_size`` or what the step says they weigh; metric objects gather
    by themselves.
    """

    def __init__(self, book: Logbook) -> None:
        self._book = book
        self._entries: dict[tuple[Scope | None, str, int], Entry] = {}
        self._calls: Counter[tuple[Scope | None, str]] = Counter()
        self._part, self._muted = -1, False

    def start(self, *, muted: bool) -> None:
        """Another part begins."""
        self._calls.clear()
        self._part, self._muted = self._part + 1, muted

    def log(self, name: str, value: Any, options: tuple[Any, ...], batch_size: float | Tensor | None) -> None:
        if self._muted:
            return None
        number = value.detach().clone().reshape(()) if isinstance(value, Tensor) and value.numel() == 1 else value
        plain = number.dim() == 0 if isinstance(number, Tensor) else isinstance(number, (int, float))
        if not isinstance(name, str) or not plain or not isinstance(batch_size, (Tensor, int, float, type(None))):
            return self._book.log(name, value, options, batch_size)  # a metric object, or what can't be logged
        scope = self._book.scope
        self._calls[scope, name] += 1
        key = (scope, name, self._calls[scope, name])
        entry = self._entries.setdefault(key, Entry(scope, name, options))
        if entry.options != options:
            self._book.log(name, value, entry.options, batch_size)
            self._book.log(name, value, options, batch_size)  # which says what is wrong with that
        entry.parts.append(self._part)
        entry.values.append(number)
        entry.sizes.append(batch_size)

    def close(self, fractions: Sequence[float], weights: Sequence[Number | None]) -> None:
        """Write down what the batch logged, after its last part.

        Args:
            fractions: Of the samples, for each part.
            weights: What the step said each weighs; None where it didn't.

        Raises:
            DataError: A mean over the epoch, and nobody knows how many samples are in the batch.
        """
        book, scope = self._book, self._book.scope
        entries = list(self._entries.values())
        self._write([entry for entry in entries if entry.in_step], fractions, weights)
        if weights[0] is not None:
            book.weigh(total(weights))
        if book.size_unknown is not None:
            raise book.size_unknown
        self._write([entry for entry in entries if not entry.in_step], fractions, weights)
        book.scope = scope

    def _write(self, entries: Sequence[Entry], fractions: Sequence[float], weights: Sequence[Number | None]) -> None:
        for entry in entries:
            value, size = entry.merged(fractions, weights)
            self._book.scope = entry.scope
            self._book.log(entry.name, value, entry.options, size)


def total(numbers: Sequence[Any]) -> Any:
    """Their sum, of tensors in 64 bits where these exist."""
    wide = [number.to(_wide(number)) if isinstance(number, Tensor) else number for number in numbers]
    return sum(wide[1:], start=wide[0])


def mean(values: Sequence[Number], weights: Sequence[Any]) -> Number:
    """Their weighted mean; where nothing weighs anything, the plain one."""
    parts = [value * weight for value, weight in zip(map(_widened, values), map(_widened, weights), strict=True)]
    whole, plain = total(weights), total(values) / len(values)
    if isinstance(whole, Tensor):
        return torch.where(whole > 0, total(parts) / whole, plain)
    return total(parts) / whole if whole else plain  # type: ignore[no-any-return]


def _widened(number: Any) -> Any:
    return number.to(_wide(number)) if isinstance(number, Tensor) else number


def _wide(value: Tensor) -> torch.dtype:
    return torch.float32 if value.device.type == "mps" else torch.float64


def _outputs(outputs: Sequence[Any], weights: Sequence[Any]) -> Any:
    """What the parts' steps returned, as that of one batch: the mean loss, and lists of what else they returned."""
    if outputs[0] is None:
        return None
    if isinstance(outputs[0], Tensor):
        return mean(outputs, weights)
    if not isinstance(outputs[0], Mapping) or "loss" not in outputs[0]:
        return list(outputs)  # where nothing is optimized
    gathered: dict[str, Any] = {key: [one.get(key) for one in outputs] for key in outputs[0]}
    gathered["loss"] = mean(gathered["loss"], weights)
    if gathered.get("weight", [None])[0] is not None:
        gathered["weight"] = total(gathered["weight"])
    return gathered


def reserve_for(optimizer: Optimizer) -> int:
    """Bytes that later passes find taken and the first doesn't: gradients of the parts before, the optimizer's state."""
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    gradients: int = sum(parameter.nbytes for parameter in parameters)
    return gradients if optimizer.state else gradients + _state_of(optimizer)


def _state_of(optimizer: Optimizer) -> int:
    """Bytes of state that the first step will make, as many for each element as a step on a few elements makes."""
    size = 0
    for group in optimizer.param_groups:
        trained = [parameter for parameter in group["params"] if parameter.requires_grad]
        if not trained:
            continue
        few = torch.zeros(2, 2, dtype=trained[0].dtype, device=trained[0].device, requires_grad=True)
        few.grad = torch.zeros_like(few)
        probe = copy.copy(optimizer)
        probe.param_groups, probe.state = [{**group, "params": [few]}], defaultdict(dict)
        try:
            probe.step()
        except Exception:  # noqa: BLE001 - anybody's optimizer, made for other parameters; most keep two numbers
            each = 2.0 * few.element_size()
        else:
            state = probe.state[few].values()
            each = sum(t.nbytes for t in state if isinstance(t, Tensor) and t.shape == few.shape) / few.numel()
        size += round(each * sum(parameter.numel() for parameter in trained))
    return size


def _skipped_part() -> ModuleError:
    return ModuleError(
        "training_step returned None for a part of a batch, and a loss for another.",
        why="with micro_batch_size, it is called for parts, and the batch's gradient is the mean over all its samples.",
        fix='return {"loss": loss, "weight": 0.0} for a part that is not to count, and a weight for every other.',
    )


def _not_found_together(what: str) -> ConfigError:
    return ConfigError(
        f'micro_batch_size="auto" with {what}.',
        why="ranks communicate in each forward pass there: one that runs out of memory in it leaves the others waiting.",
        fix="give it a number, such as micro_batch_size=1; `python -m my_project estimate` says what a step takes.",
    )
