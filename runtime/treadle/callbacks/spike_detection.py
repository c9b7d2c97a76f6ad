"""Notice a loss that jumps: stop, warn, leave the step out, or go back."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, final

import torch
from torch import Tensor
from torch.optim import Optimizer

from treadle.callbacks.base import Callback
from treadle.callbacks.gradient_accumulation_scheduler import GradientAccumulationScheduler
from treadle.callbacks.last_good import LastGood
from treadle.callbacks.spike_judging import Judge, Place, Spike, largest, largest_gradient, loss_in
from treadle.errors import ConfigError, TrainingError, warn
from treadle.metrics import Number, as_floats
from treadle.precision import SkipsSteps

if TYPE_CHECKING:
    from treadle.module import Module
    from treadle.trainer import Trainer

OnSpike = Literal["stop", "warn", "skip", "rollback"]
Moment = tuple[int, int, int]
"""Epoch, batches and steps so far."""


@final
class SpikeDetection(Callback):
    """Finds the batch whose loss is not finite, or much worse than those before it.

    Losses stay on their device and are read together: at log points, at the end of epochs, and before a
    ``ModelCheckpoint`` saves, so that a state known to be bad becomes no ``last.ckpt``. Up to there training goes on. With
    ``check_every=1`` it ends with the batch at fault, and each step waits for the device.

    ``on_spike`` says what happens then; on all ranks alike, whichever saw it:

    - ``stop``: an error that names the batch.
    - ``warn``: a warning; training goes on.
    - ``skip``: a step is left out if a loss of its batches is a spike, or a gradient is not finite. Weights, buffers,
      optimizer, schedulers that count steps and averages stay what they were, and no step is counted; the batches are.
      What ``training_step`` logged of them stays logged. Each step waits for the device once, and ranks send one small
      message. With ``16-mixed`` the scale looks after gradients that are not finite: those steps are left out by it, and
      counted as steps.
    - ``rollback``: what steps move (weights, buffers, optimizers, schedulers, the scale of ``16-mixed``, averaged weights)
      is put back as it was at the last check that found nothing, and training goes on with the next batches. Counters go
      on too, ``global_step`` among them, so rows and checkpoints never go backwards. The last good state is one copy on
      the host, made anew after each good check; of a run's start, the first. A check judges losses, and those are of the
      weights before their step: one last step that ruins the weights, but leaves them finite, is found by the next check.

    Args:
        mode: Whether less or more is better.
        window: A loss is compared with the mean of so many before it, spikes not counted.
        warmup: The first so many are not compared; at least 1.
        atol: Much worse is at least so much worse than the mean; None for whatever ``rtol`` says.
        rtol: And at least so many times the mean worse: with 2, a loss of 3 is a spike after losses of 1. None for
            whatever ``atol`` says.
        finite_only: A loss that is not finite is a spike; else it is left out.
        on_spike: See above.
        check_every: Optimizer steps between two looks; ``skip`` looks at each. Default: the Trainer's
            ``log_every_n_steps``.
        max_skips: So many steps left out in a row are not an error; one more is.
        max_rollbacks: The same for times of going back without a good check between them.

    Raises:
        ConfigError: A setting out of its range. While fitting: ``skip`` with manual optimization, or with an optimizer or a
            module that computes its gradients inside of the step; ``rollback`` with these and accumulation.
        ModuleError: While fitting, ``training_step`` returns no loss.
        TrainingError: While fitting, a spike; or more than ``max_skips`` or ``max_rollbacks``.
    """

    def __init__(
        self,
        mode: Literal["min", "max"] = "min",
        window: int = 10,
        warmup: int = 1,
        atol: float | None = None,
        rtol: float | None = 2.0,
        finite_only: bool = True,
        on_spike: OnSpike = "stop",
        check_every: int | None = None,
        max_skips: int = 10,
        max_rollbacks: int = 3,
    ) -> None:
        bounds = [bound for bound in (atol, rtol) if bound is not None]
        if mode not in ("min", "max") or on_spike not in ("stop", "warn", "skip", "rollback"):
            raise ConfigError(
                f"SpikeDetection(mode={mode!r}, on_spike={on_spike!r}).",
                why='mode is "min" or "max"; at a spike it stops with an error ("stop"), warns ("warn"), leaves the step '
                'out ("skip"), or goes back to the last good state ("rollback").',
                fix='SpikeDetection(mode="min", on_spike="stop")',
            )
        if window < 1 or warmup < 1 or (check_every is not None and check_every < 1) or any(b <= 0 for b in bounds):
            raise ConfigError(
                f"SpikeDetection(window={window}, warmup={warmup}, atol={atol}, rtol={rtol}, check_every={check_every}).",
                why="window, warmup and check_every are counts from 1, atol and rtol above 0 or None.",
                fix="SpikeDetection(window=10, warmup=1, rtol=2.0)",
            )
        if max_skips < 0 or max_rollbacks < 0:
            raise ConfigError(
                f"SpikeDetection(max_skips={max_skips}, max_rollbacks={max_rollbacks}).",
                why="they are counts from 0: as often in a row is no error.",
                fix="SpikeDetection(max_skips=10, max_rollbacks=3)",
            )
        if on_spike == "skip" and check_every not in (None, 1):
            raise ConfigError(
                f'SpikeDetection(on_spike="skip", check_every={check_every}).',
                why="a step can be left out only before it is taken, so each is looked at.",
                fix='SpikeDetection(on_spike="skip"), or on_spike="rollback", which looks at several together',
            )
        if not bounds and not finite_only:
            raise ConfigError(
                "SpikeDetection(atol=None, rtol=None, finite_only=False).",
                why="nothing would ever be a spike.",
                fix="SpikeDetection(rtol=2.0)",
            )
        self.mode, self.window, self.warmup, self.on_spike = mode, window, warmup, on_spike
        self.atol, self.rtol, self.finite_only, self.check_every = atol, rtol, finite_only, check_every
        self.max_skips, self.max_rollbacks = max_skips, max_rollbacks
        self._trainer: Trainer | None = None
        self._start_anew()

    def _start_anew(self) -> None:
        self.skipped_batches = 0
        """Batches whose step was left out; ``skip`` logs it under this name at the end of each epoch."""
        self.rollbacks = 0
        """How often the run went back; ``rollback`` logs it under this name at the end of each epoch."""
        self._judge = Judge(
            mode=self.mode,
            window=self.window,
            warmup=self.warmup,
            atol=self.atol,
            rtol=self.rtol,
            finite_only=self.finite_only,
        )
        self._without_loss = 0
        """Batches without one."""
        self._unread: list[Tensor] = []
        self._places: list[Place] = []
        """Of each of the unread."""
        self._in_a_row = 0
        """Steps left out, or times of going back, since all was well."""
        self._buffers: dict[str, Tensor] = {}
        """The module's, as they were before the open window."""
        self._in_window = False
        self._drops = False
        """The open window began before the run went back: its gradients are of weights that are gone."""
        self._good = LastGood()
        self._good_at: Moment | None = None
        """When the good copy was what the run was."""
        self._found_good = False
        """Since the copy was made."""

    # --- the run ---

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        if stage == "fit":
            self._trainer = trainer
            self._start_anew()

    def teardown(self, trainer: Trainer, module: Module, stage: str) -> None:
        if stage == "fit":
            self._good, self._buffers, self._good_at = LastGood(), {}, None  # memory

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        manual, accumulates = not module.automatic_optimization, trainer.accumulate_grad_batches > 1
        if manual and (self.on_spike == "skip" or (self.on_spike == "rollback" and accumulates)):
            also = " and accumulate_grad_batches > 1" if self.on_spike == "rollback" else ""
            raise ConfigError(
                f"SpikeDetection(on_spike={self.on_spike!r}) with manual optimization{also}.",
                why=f"{type(module).__name__}.training_step steps by itself, and a step is left out before it is taken.",
                fix="test the loss in training_step, and call step() only if it is finite; or "
                + ('on_spike="rollback".' if self.on_spike == "skip" else "accumulate_grad_batches=1."),
            )

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        if self.on_spike == "rollback" and self._good_at is None:
            self._keep(trainer, module)

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.on_spike == "skip":
            return
        closed = trainer.progress.window == 0
        self._take_in(trainer, outputs, batch_idx, trainer.global_step - closed)
        due = trainer.global_step % (self.check_every or trainer.log_every_n_steps) == 0
        if closed and (due or (trainer.is_last_batch and self.on_spike == "rollback")):  # before it is validated
            self._check(trainer, module)

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        if self.on_spike == "skip":
            self.log("skipped_batches", float(self.skipped_batches))
            return
        self._check(trainer, module)
        if self.on_spike == "rollback":
            self.log("rollbacks", float(self.rollbacks))

    def on_savepoint(self, trainer: Trainer, module: Module, final: bool) -> None:
        # Before a ModelCheckpoint's: those are the last of the callbacks.
        acts = self.on_spike in ("stop", "rollback")
        reads = bool(self._unread) or trainer.world_size > 1  # which all do together
        if acts and reads and (final or any(c.is_due(trainer, final) for c in trainer.checkpoint_callbacks)):
            self._check(trainer, module)
        if self._found_good and not self._unread:
            self._keep(trainer, module)

    def on_train_end(self, trainer: Trainer, module: Module) -> None:
        if self._without_loss and not self._judge.seen:
            warn("spike", "SpikeDetection saw no loss: training_step returned None for every batch.")

    # --- between steps: stop, warn, go back ---

    def _take_in(self, trainer: Trainer, outputs: Any, batch_idx: int, step: int) -> None:
        if (loss := loss_in(outputs)) is None:
            self._without_loss += 1
        else:
            self._unread.append(loss)
            self._places.append(Place(trainer.current_epoch, batch_idx, step))

    def _read(self, name: str = "", also: Tensor | None = None) -> tuple[list[Spike], bool]:
        """The spikes among what has come in since the last look, and whether ``also`` is finite. Waits for the device."""
        unread: dict[str, Number] = {str(index): loss for index, loss in enumerate(self._unread)}
        places, self._unread, self._places = self._places, [], []
        if also is not None:
            unread[name] = also
        values = as_floats(unread)
        finite = math.isfinite(values.pop(name)) if also is not None else True
        return self._judge.spikes(values.values(), places), finite

    def _check(self, trainer: Trainer, module: Module) -> None:
        goes_back = self.on_spike == "rollback"
        spikes, finite = self._read("weights", largest(list(module.parameters())) if goes_back else None)
        bad = bool(spikes) or not finite
        if self.on_spike != "warn":
            bad = _anywhere(trainer, bad)
        if goes_back:
            self._found_good = not bad
            if bad:
                self._go_back(trainer, module, _told(spikes, "the weights are not finite.", bad=not finite))
            else:
                self._in_a_row = 0
        elif bad and self.on_spike == "stop":
            raise self._stopped(trainer, spikes)
        elif spikes:
            others = f" And {len(spikes) - 1} more since the last check." if len(spikes) > 1 else ""
            warn("spike", f"{spikes[0]} {spikes[0].why}{others}")

    def _keep(self, trainer: Trainer, module: Module) -> None:
        moment = _moment(trainer)
        if moment != self._good_at:
            self._good.take(trainer, module)
        self._good_at, self._found_good = moment, False

    def _go_back(self, trainer: Trainer, module: Module, found: str) -> None:
        self._good.bring_back(trainer, module)
        self._good_at, self._drops = _moment(trainer), trainer.progress.window > 0
        self.rollbacks, self._in_a_row = self.rollbacks + 1, self._in_a_row + 1
        if self._in_a_row > self.max_rollbacks:
            raise TrainingError(
                f"{found} The run went back {self._in_a_row} times in a row.",
                why=f"more than max_rollbacks={self.max_rollbacks} without a good check between: the last good state leads "
                "to the same again. The weights are those of the last good state.",
                fix=_cure(trainer),
            )
        if found:
            warn("rollback", f"{found} The run went back to its last good state, and goes on with the next batches.")

    def _stopped(self, trainer: Trainer, spikes: list[Spike]) -> TrainingError:
        if not spikes:
            return TrainingError("the loss of another rank jumped.", why="all ranks stop together.", fix=_cure(trainer))
        why = f"{spikes[0].why} SpikeDetection({self._judge.bounds}) stops there."
        return TrainingError(str(spikes[0]), why=why, fix=_cure(trainer))

    # --- before a step: leave it out ---

    @property
    def guards_steps(self) -> bool:
        if self.on_spike == "rollback":  # to drop a window that a check falls into
            assert self._trainer is not None
            scheduled = any(isinstance(c, GradientAccumulationScheduler) for c in self._trainer.callbacks)
            return scheduled or self._trainer.accumulate_grad_batches > 1
        return self.on_spike == "skip"

    def before_window(self, trainer: Trainer, module: Module) -> None:
        self._in_window = True
        if self.on_spike == "skip":
            before, self._buffers = self._buffers, {}
            for name, buffer in module.named_buffers():
                kept = before.get(name)
                fits = kept is not None and (kept.shape, kept.dtype) == (buffer.shape, buffer.dtype)
                self._buffers[name] = kept.copy_(buffer) if kept is not None and fits else buffer.detach().clone()

    def after_backward(self, trainer: Trainer, outputs: Any, batch_idx: int) -> None:
        if self.on_spike == "skip":
            self._take_in(trainer, outputs, batch_idx, trainer.global_step)

    def allows_step(self, trainer: Trainer, module: Module, optimizer: Optimizer) -> bool:
        drops, self._drops, self._in_window = self._drops, False, False
        if self.on_spike == "rollback":
            return not drops
        scaled = isinstance(trainer.fabric.precision, SkipsSteps)  # whose overflows are part of finding the scale
        batches, last = len(self._places), self._places[-1] if self._places else None
        spikes, finite = self._read("gradients", None if scaled else largest_gradient(optimizer))
        if not _anywhere(trainer, bool(spikes) or not finite):
            self._in_a_row = 0
            return True
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                if name in self._buffers:
                    buffer.copy_(self._buffers[name])
        where = f" in epoch {last.epoch}, batch {last.batch} (step {last.step})" if last else ""
        found = _told(spikes, f"the gradients are not finite{where}.", bad=not finite)
        first, self.skipped_batches = self.skipped_batches == 0, self.skipped_batches + batches
        self._in_a_row += 1
        if self._in_a_row > self.max_skips:
            raise TrainingError(
                f"{found or 'the numbers of another rank went wrong.'} {self._in_a_row} steps in a row were left out.",
                why=f"more than max_skips={self.max_skips}: the weights are bad already, or the data is.",
                fix=_cure(trainer),
            )
        if first and found:
            warn("spike", f"{found} The step is left out, and so are later ones like it; skipped_batches counts them.")
        return False

    # --- state ---

    @property
    def state_key(self) -> str:
        return f"SpikeDetection[{self.mode},{self.on_spike}]"

    def state_dict(self) -> dict[str, Any]:
        """Of several ranks, each has seen losses of its own: collective."""
        own: dict[str, Any] = {
            "compared": list(self._judge.compared),
            "seen": self._judge.seen,
            "unread": list(as_floats({str(i): loss for i, loss in enumerate(self._unread)}).values()),
            "places": [list(place) for place in self._places],
            "without_loss": self._without_loss,
        }
        trainer = self._trainer
        several = trainer is not None and trainer.world_size > 1
        state = {
            "ranks": trainer.fabric.ranks.gather_objects(own) if trainer is not None and several else [own],
            "in_a_row": self._in_a_row,
            "skipped_batches": self.skipped_batches,
            "rollbacks": self.rollbacks,
            "in_window": self._in_window,
            "drops": self._drops,
            "buffers": dict(self._buffers) if self._in_window else {},
        }
        # Where a ModelCheckpoint saves, the good state is the run's own. A copy of parts can't be saved.
        if trainer is not None and self._good_at not in (None, _moment(trainer)) and self._good.is_whole:
            state["good"] = self._good.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        ranks, trainer = state["ranks"], self._trainer
        size, rank = (trainer.world_size, trainer.global_rank) if trainer is not None else (1, 0)
        own = ranks[rank] if len(ranks) == size else {**ranks[0], "unread": [], "places": []}
        self._judge.compared, self._judge.seen = list(own["compared"]), own["seen"]
        self._unread = [torch.tensor(loss, dtype=torch.float64) for loss in own["unread"]]
        self._places = [Place(*place) for place in own["places"]]
        self._without_loss = own["without_loss"]
        self._in_a_row, self._in_window, self._drops = state["in_a_row"], state["in_window"], state["drops"]
        self.skipped_batches, self.rollbacks = state["skipped_batches"], state["rollbacks"]
        self._buffers = {name: buffer.clone() for name, buffer in state["buffers"].items()}
        if "good" in state:
            self._good.load_state_dict(state["good"])
            self._good_at = (-1, -1, -1)  # not what the run is


def _told(spikes: list[Spike], otherwise: str, *, bad: bool) -> str:
    """What this rank has found; empty if another rank did."""
    return f"{spikes[0]} {spikes[0].why}" if spikes else otherwise if bad else ""


def _moment(trainer: Trainer) -> Moment:
    progress = trainer.progress
    return progress.epoch, progress.batches, progress.global_step


def _cure(trainer: Trainer) -> str:
    saved = next((path for c in trainer.checkpoint_callbacks if (path := c.last_model_path)), "")
    before = f'resume from before it: ckpt_path="{saved}"' if saved else "resume from a checkpoint from before it"
    return (
        "look at that batch; lower the learning rate or set gradient_clip_val=1.0; "
        f'SpikeDetection(on_spike="skip") leaves such steps out; {before}.'
    )


def _anywhere(trainer: Trainer, spiked: bool) -> bool:
    """Whether it did on any rank: one that stopped alone would leave the others waiting for it."""
    if trainer.world_size == 1:
        return spiked
    fabric = trainer.fabric
    return bool(fabric.all_reduce(torch.tensor(float(spiked), device=fabric.device), "max"))
