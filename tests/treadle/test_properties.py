"""What holds whatever the settings: how often everything happens, and that a stopped run goes on as if it never had."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader

import treadle
from treadle.callbacks import ModelCheckpoint
from treadle.schedule import Every
from treadle.testing import Classifier, MemoryLogger, NoisyPoints

PROPERTY = settings(deadline=None, max_examples=60, derandomize="CI" in os.environ)
THREE_FITS = settings(PROPERTY, max_examples=30)
NEVER = float("inf")


# --- how often: what the documentation says, in plain Python ---


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A fit: settings by the names they have in the Trainer, and what is read and saved."""

    batches: int = 5
    has_length: bool = True
    """Whether the loader can tell how many those are."""
    limit_train_batches: int | float = 1.0
    accumulate_grad_batches: int = 1
    max_epochs: int = 1
    max_steps: int = -1
    min_epochs: int = 0
    min_steps: int = 0
    stop_after: float = NEVER
    """The batch from which on a callback asks to stop."""
    log_every_n_steps: int = 1
    val_check_interval: Any = 1.0
    check_val_every_n_epoch: int | None = 1
    checkpoint: dict[str, int] = field(default_factory=dict)
    """Settings of ModelCheckpoint."""

    @property
    def epoch(self) -> int:
        """Batches of an epoch. A fraction is rounded down."""
        limit = self.limit_train_batches
        return int(limit * self.batches) if isinstance(limit, float) else min(limit, self.batches)

    @property
    def for_trainer(self) -> dict[str, Any]:
        return {n: v for n, v in vars(self).items() if n not in ("batches", "has_length", "stop_after", "checkpoint")}


@dataclass
class History:
    """What happened in a fit."""

    batches: int = 0
    steps: int = 0
    epochs: int = 0
    validations: list[int] = field(default_factory=list)
    """After how many batches each ran."""
    rows: list[dict[str, float]] = field(default_factory=list)
    checkpoints: set[int] = field(default_factory=set)
    """The steps at which one was kept."""


def expected(plan: Plan) -> History:
    """The specification of the Trainer's counters."""
    was = History()
    while not is_over(plan, was):
        for batch in range(1, plan.epoch + 1):
            was.batches += 1
            ends_epoch = batch == plan.epoch
            steps = ends_epoch or batch % plan.accumulate_grad_batches == 0
            was.steps += steps
            if steps and was.steps % plan.log_every_n_steps == 0:
                was.rows.append({"step": was.steps - 1, "epoch": was.epochs, "batch": was.batches})
            asked = (
                was.batches >= plan.stop_after and not ends_epoch and is_over(plan, was)
            )  # inside: validated once more
            validates = asked or is_validated(plan, was, batch, steps)
            if validates:
                was.validations.append(was.batches)
            was.epochs += ends_epoch
            if is_saved(plan, was, steps, ends_epoch, validates):
                was.checkpoints.add(was.steps)
            if is_over(plan, was):
                break
    return was


def is_over(plan: Plan, was: History) -> bool:
    if was.steps == plan.max_steps or was.epochs == plan.max_epochs:
        return True
    return was.batches >= plan.stop_after and was.epochs >= plan.min_epochs and was.steps >= plan.min_steps


def is_validated(plan: Plan, was: History, batch: int, steps: bool) -> bool:
    """Whether validation runs after this batch, counted from 1 in its epoch."""
    if plan.check_val_every_n_epoch is not None and (was.epochs + 1) % plan.check_val_every_n_epoch:
        return False
    match plan.val_check_interval:
        case Every(unit="steps", count=count):
            return steps and was.steps % count == 0
        case Every(unit="epochs", count=count):
            return batch == plan.epoch and (was.epochs + 1) % count == 0
        case float(fraction):
            return batch % max(1, int(fraction * plan.epoch)) == 0
        case count:
            return (was.batches if plan.check_val_every_n_epoch is None else batch) % count == 0


def is_saved(plan: Plan, was: History, steps: bool, ends_epoch: bool, validates: bool) -> bool:
    match plan.checkpoint:
        case {"every_n_train_steps": count}:
            return steps and was.steps % count == 0
        case {"every_n_epochs": count}:
            return ends_epoch and was.epochs % count == 0
        case _:
            return validates or ends_epoch or is_over(plan, was)  # where the run ends, whatever the epoch


# --- settings that the Trainer takes together ---


@st.composite
def plans(draw: Any) -> Plan:
    batches, has_length = draw(st.integers(1, 6)), draw(st.booleans())
    fractions = [f for f in (0.25, 0.5, 0.75) if has_length and f * batches >= 1]
    loader = Plan(
        batches=batches,
        has_length=has_length,
        limit_train_batches=draw(st.sampled_from([*fractions, 1.0]) | st.integers(1, 7)),
        max_epochs=draw(st.integers(1, 3)),
    )
    # Of a loader without length nobody knows that a batch is the last before the next is asked for: a step on a short
    # last window comes after the batch then, and a run that is over with that batch ends before the epoch does.
    limit = loader.limit_train_batches
    foreseen = has_length or (isinstance(limit, int) and limit <= batches)
    accumulate = draw(st.integers(1, 4).filter(lambda window: foreseen or loader.epoch % window == 0))
    most = loader.max_epochs * -(-loader.epoch // accumulate)
    return replace(
        loader,
        accumulate_grad_batches=accumulate,
        max_steps=draw(st.just(-1) | st.integers(1, most)) if foreseen else -1,
        stop_after=draw(st.just(NEVER) | st.integers(1, loader.max_epochs * loader.epoch)) if foreseen else NEVER,
        min_epochs=draw(st.integers(0, loader.max_epochs)),  # more than the most contradicts max_epochs
        min_steps=draw(st.integers(0, most)),
        log_every_n_steps=draw(st.integers(1, 4)),
        checkpoint=draw(
            st.just({})
            | st.fixed_dictionaries({"every_n_train_steps": st.integers(1, 4)})
            | st.fixed_dictionaries({"every_n_epochs": st.integers(1, 3)})
        ),
        **draw(validation(loader)),
    )


def validation(loader: Plan) -> st.SearchStrategy[dict[str, Any]]:
    fractions = [0.1, 0.25, 0.4, 0.5, 0.75, 1.0] if loader.has_length else [1.0]
    counts = st.sampled_from(fractions) | st.integers(1, loader.epoch)
    steps = st.integers(1, 4).map(lambda count: Every(f"{count} steps"))
    epochs = st.integers(1, 3).map(lambda count: Every(f"{count} epochs"))
    pairs = [
        (counts | steps, st.integers(1, 3)),
        (st.integers(1, 9) | steps, st.none()),
        (epochs, st.just(1) | st.none()),
    ]
    return st.one_of(
        st.fixed_dictionaries({"val_check_interval": interval, "check_val_every_n_epoch": every})
        for interval, every in pairs
    )


class Killed(BaseException):
    """Stands for SIGKILL: no handler of the Trainer may save anything on it."""


class Watch(treadle.Callback):
    """Notes after how many batches validation ran and which savepoints were final.

    Args:
        stop_after: The batch from which on it asks to stop.
        kill_at: The savepoint at which the process dies.
    """

    def __init__(self, stop_after: float, kill_at: int | None = None) -> None:
        self.stop_after, self.kill_at = stop_after, kill_at
        self.validations, self.finals = list[int](), list[bool]()

    def on_train_start(self, trainer: treadle.Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.should_stop or trainer.progress.batches >= self.stop_after

    on_train_batch_end = on_train_start

    def on_validation_start(self, trainer: treadle.Trainer, module: treadle.Module) -> None:
        self.validations.append(trainer.progress.batches)

    def on_savepoint(self, trainer: treadle.Trainer, module: treadle.Module, final: bool) -> None:
        self.finals.append(final)
        if len(self.finals) == self.kill_at:
            raise Killed


class Weight(treadle.Module):
    """One weight. Logs on each step how many batches it was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.batches = 0

    def training_step(self, batch: Tensor) -> Tensor:
        self.batches += 1
        self.log("batch", self.batches)
        return self.weight * batch.mean()

    def validation_step(self, batch: Tensor) -> None: ...

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class WithoutLength:
    """Batches of a loader that can't tell how many it has."""

    def __init__(self, batches: list[Tensor]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.batches)


class TestAnySettings:
    @PROPERTY
    @given(plans())
    def test_train_validate_log_and_save_as_documented(self, plan: Plan) -> None:
        """Batches, steps, epochs, validations, rows and checkpoints follow from the documentation alone."""
        model, watch, logger, batches = Weight(), Watch(plan.stop_after), MemoryLogger(), [torch.ones(1)] * plan.batches
        with tempfile.TemporaryDirectory() as folder:
            checkpoints = ModelCheckpoint(folder, save_top_k=-1, **plan.checkpoint)
            trainer = trainer_for(plan, Path(folder), [watch, checkpoints], logger=logger, num_sanity_val_steps=0)
            trainer.fit(model, batches if plan.has_length else WithoutLength(batches), [torch.ones(1)])
            steps = {int(found[1]) for path in Path(folder).iterdir() if (found := re.search(r"step=(\d+)", path.name))}
        counts = model.batches, trainer.global_step, trainer.current_epoch
        assert History(*counts, watch.validations, logger.rows, steps) == expected(plan)
        assert watch.finals == [False] * (len(watch.finals) - 1) + [True]


def trainer_for(plan: Plan, root: Path, callbacks: list[treadle.Callback], **settings: Any) -> treadle.Trainer:
    return treadle.Trainer(
        default_root_dir=root, enable_progress_bar=False, callbacks=callbacks, **settings, **plan.for_trainer
    )


# --- stopped and resumed ---


class SaveEach(treadle.Callback):
    """Saves ``last.ckpt`` at every savepoint, inside accumulation windows too."""

    def on_savepoint(self, trainer: treadle.Trainer, module: treadle.Module, final: bool) -> None:
        trainer.save_checkpoint(trainer.run_folder / "checkpoints" / "last.ckpt")


class Weighted(Classifier):
    """Batches weigh as much as they have points of the second class; the learning rate falls with each step."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": super().training_step(batch, batch_idx), "weight": batch[2].sum() + 0.5}

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


@dataclass
class Run:
    """What a process did, and left."""

    seen: list[list[int]]
    weights: list[Tensor]
    rows: str
    savepoints: int


def run(
    plan: Plan,
    root: Path,
    module: type[Classifier],
    each: bool,
    kill_at: int | None = None,
    ckpt_path: str | None = None,
) -> Run:
    """Trains on shuffled, augmented points. With ``each``, saves at every savepoint, else at the plan's rhythm."""
    treadle.seed_everything(7 if ckpt_path is None else 999)  # a resumed process starts from another state
    model, watch = module(), Watch(plan.stop_after, kill_at)
    saving: treadle.Callback = SaveEach() if each else ModelCheckpoint(**plan.checkpoint)
    trainer = trainer_for(plan, root, [saving, watch], enable_checkpointing=not each)
    loader = DataLoader(NoisyPoints(2 * plan.batches - 1), 2, shuffle=True)
    with suppress(Killed):
        trainer.fit(model, loader, DataLoader(NoisyPoints(2), 2), ckpt_path=ckpt_path)
    rows = root / "runs/version_0/metrics.csv"
    return Run(model.seen, [*model.state_dict().values()], rows.read_text() if rows.exists() else "", len(watch.finals))


class TestARunKilledAnywhere:
    @THREE_FITS
    @given(plans(), st.sampled_from([Classifier, Weighted]), st.booleans(), st.data())
    def test_goes_on_bit_for_bit(self, plan: Plan, module: type[Classifier], each: bool, data: Any) -> None:
        """Whatever the settings, and however rare its checkpoints: the same samples, weights and rows."""
        with tempfile.TemporaryDirectory() as folder:
            whole = run(plan, Path(folder, "whole"), module, each)
            parts, kill_at = Path(folder, "parts"), data.draw(st.integers(1, whole.savepoints), label="kill_at")
            first = run(plan, parts, module, each, kill_at)
            last = parts / "runs/version_0/checkpoints/last.ckpt"
            assume(last.exists())
            second = run(plan, parts, module, each, ckpt_path="last")
        assert first.seen == whole.seen[: len(first.seen)]
        assert second.seen == whole.seen[len(whole.seen) - len(second.seen) :]
        assert len(first.seen) + len(second.seen) >= len(whole.seen)
        assert all(torch.equal(one, other) for one, other in zip(second.weights, whole.weights, strict=True))
        assert second.rows == whole.rows


class TestARunThatEndedInsideAnEpoch:
    @pytest.mark.parametrize("batches", [3, 5], ids=["killed before the epoch's end", "broken off"])
    def test_has_the_same_rows_when_resumed(self, tmp_path: Path, batches: int) -> None:
        """max_steps=3: the epoch's mean so far was its last row, and is again."""
        plan = Plan(batches=batches, max_steps=3)
        whole = run(plan, tmp_path / "whole", Classifier, each=True)
        run(plan, tmp_path / "parts", Classifier, each=True, kill_at=3)
        assert run(plan, tmp_path / "parts", Classifier, each=True, ckpt_path="last").rows == whole.rows
