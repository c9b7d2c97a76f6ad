"""A run that is killed again and again, and what is different in the end: nothing.

A small real training (dropout, AdamW, OneCycleLR, accumulation, shuffled and augmented data, validation inside epochs,
averaged weights, early stopping, rows in a CSV file, the two best checkpoints and the newest) is killed with SIGKILL, its
whole process group, and started again by the same call with ``ckpt_path="auto"``, until it is done. Then weights, rows
(byte by byte), everything in the last checkpoint and the names of all files must be those of the run that nobody touched.

- At random moments, several times a run; ``--kills`` of them for each variant, from ``--seed``.
- At each system call in which one save touches a file, right before it happens: the process is traced (ptrace, so on Linux
  only) and killed at the first, the second, and so on until the save has no more.

    python benchmarks/kill_sweep.py --kills 200
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass, field
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tracing.system_calls import Untraceable, be_traced, follow

import treadle
from treadle.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from treadle.testing import Classifier, NoisyPoints

BATCHES, EPOCHS = 12, 3


@dataclass(frozen=True)
class Variant:
    workers: int = 0
    persistent: bool = False
    saving: dict[str, Any] = field(default_factory=dict)
    """Arguments of ``ModelCheckpoint``."""


VARIANTS = {
    "in one process": Variant(),
    "2 loader workers": Variant(workers=2),
    "2 persistent workers": Variant(workers=2, persistent=True),
    "saved asynchronously": Variant(saving={"save_async": True}),
}


@dataclass(frozen=True)
class Aim:
    """System calls: from the savepoint after so many batches until two batches later."""

    batches: int
    variant: str = "in one process"
    of_start: bool = False
    """Those with which a resumed run starts, up to the batch that it goes on with."""


AIMED = {
    "the first save": Aim(2),
    "a save of a new best": Aim(22),
    "an asynchronous save": Aim(22, "saved asynchronously"),
    "the start of a resumed run": Aim(20, of_start=True),
}


# --- the run ---


class Network(Classifier):
    """With dropout; its points are disturbed anew whenever they are read."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


PHASES = ("starting", "training", "validating", "saving")
HALF = ".*.partial"
"""Files that are being written."""


class Told(treadle.Callback):
    """Tells the process that kills this one what it is doing, through memory that both see.

    Args:
        board: The phase, batches trained on in all, batches at the start, and whether system calls are counted.
        counted: Count those from the savepoint after so many batches until two batches later.
    """

    def __init__(self, board: Any, counted: int = -1) -> None:
        self.board, self.counted = board, counted

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.board[1] = self.board[2] = trainer.progress.batches

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.board[0] = 1
        if trainer.progress.batches == self.counted + 2:
            self.board[3] = 0

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.board[1] = trainer.progress.batches

    def on_validation_start(self, trainer: Any, module: Any) -> None:
        self.board[0] = 2

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        self.board[0] = 1

    def on_savepoint(self, trainer: Any, module: Any, final: bool) -> None:
        if trainer.progress.batches == self.counted:
            self.board[3] = 1

    def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: Any) -> None:
        self.board[0] = 3


def train(variant: Variant, root: Path, told: Told) -> None:
    """The call that is made each time. Leaves the module's weights in ``final.pt``."""
    treadle.seed_everything(7)
    if next(root.rglob("last.ckpt"), None):
        torch.rand(3), random.random()  # it should not matter in which state a resumed process begins
    options = {"num_workers": variant.workers, "persistent_workers": variant.persistent}
    model = Network()
    trainer = treadle.Trainer(
        default_root_dir=root,
        max_epochs=EPOCHS,
        accumulate_grad_batches=2,
        val_check_interval=5,
        log_every_n_steps=1,
        enable_progress_bar=False,
        callbacks=[
            told,
            EMAWeightAveraging(0.9),
            EarlyStopping("val_loss", patience=99),
            ModelCheckpoint(monitor="val_loss", save_top_k=2, every="1 step", **variant.saving),
        ],
    )
    trainer.fit(
        model,
        DataLoader(NoisyPoints(BATCHES * 4), 4, shuffle=True, **options),
        DataLoader(NoisyPoints(16, noise=0.0), 8),
        ckpt_path="auto",
    )
    torch.save(model.state_dict(), root / "final.pt")


def left_in(root: Path) -> dict[str, Any]:
    """What a run left behind."""
    run = max(root.glob("runs/version_*"), key=lambda path: int(path.name.removeprefix("version_")))
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    for logger in checkpoint["loggers"].values():
        del logger["version"]  # killed before its first checkpoint, a run starts anew in another folder
    return {
        "weights": torch.load(root / "final.pt", weights_only=True),
        "rows": (run / "metrics.csv").read_bytes(),
        "checkpoint": checkpoint,
        "files": {str(path.relative_to(run)): True for path in run.rglob("*") if path.is_file()},
    }


def differing(one: Any, other: Any, at: str = "") -> Iterator[str]:
    """The places at which two such values are not the same bit by bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in one.keys() | other.keys():
            yield from differing(one.get(key), other.get(key), f"{at}.{key}" if at else str(key))
    elif isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        for index, (first, second) in enumerate(zip(one, other, strict=True)):
            yield from differing(first, second, f"{at}[{index}]")
    elif isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.dtype != other.dtype or not torch.equal(one, other):
            yield at
    elif one != other:
        yield at


# --- killing it ---


class Victim:
    """A process that trains, forked from this one, which has everything imported and never trains itself."""

    def __init__(
        self, variant: Variant, root: Path, *, counted: int = -1, counts: bool = False, traced: bool = False
    ) -> None:
        self.board: Any = RawArray("q", [0, 0, 0, counts])
        self.root, self._halves = root, set(root.rglob(HALF))
        ended, alive = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._live(variant, counted, traced)
        os.setpgid(self.pid, self.pid)  # here too: it may be killed before it gets to it
        os.close(alive)
        self.ended = ended

    def _live(self, variant: Variant, counted: int, traced: bool) -> None:
        code = 1
        try:
            os.setpgid(0, 0)
            os.chdir(self.root)  # in no repository, whose state a run would write down
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            if traced:
                be_traced()
            train(variant, self.root, Told(self.board, counted))
            code = 0
        except BaseException:  # noqa: BLE001  # whatever it was, it is a finding
            (self.root / "error.txt").write_text(traceback.format_exc())
        os._exit(code)

    def lives_for(self, seconds: float | None) -> bool:
        """Wait so long, or until it ends by itself. Returns whether it still lives."""
        return not select.select([self.ended], [], [], seconds)[0]

    def kill(self) -> None:
        os.killpg(self.pid, signal.SIGKILL)

    def killed_at(self, number: int) -> str | None:
        """Kill it when it is about to make its ``number``-th counted system call on a file. Returns the call's name; None if
        there were fewer, and the run is finished."""
        name, status = follow(self.pid, number, counts=lambda: bool(self.board[3]), kill=self.kill)
        self.leave(status)
        return name

    def leave(self, status: int | None = None) -> bool:
        """Wait for its end, unless its ``status`` is known. Returns whether it finished the training."""
        os.close(self.ended)
        status = os.waitpid(self.pid, 0)[1] if status is None else status
        if (code := os.waitstatus_to_exitcode(status)) not in (0, -signal.SIGKILL):
            error = self.root / "error.txt"
            raise RuntimeError(error.read_text() if error.exists() else f"a run ended with {code}")
        return code == 0

    @property
    def phase(self) -> str:
        """What it was doing when it was killed."""
        return "with a file half written" if set(self.root.rglob(HALF)) - self._halves else PHASES[self.board[0]]


@dataclass
class Report:
    kills: int = 0
    runs: int = 0
    where: dict[str, int] = field(default_factory=dict)
    batches_lost: list[int] = field(default_factory=list)
    """Of each kill: batches that were trained on again."""
    restarts: int = 0
    """Killed before the first checkpoint: begun anew."""
    differences: list[str] = field(default_factory=list)

    def killed(self, where: str) -> None:
        self.kills += 1
        self.where[where] = self.where.get(where, 0) + 1

    def compare(self, root: Path, unbroken: dict[str, Any]) -> None:
        self.runs += 1
        self.differences += differing(left_in(root), unbroken)

    def line(self, name: str) -> str:
        lost = sorted(self.batches_lost) or [0]
        where = ", ".join(f"{count} {at}" for at, count in sorted(self.where.items(), key=lambda item: -item[1]))
        return (
            f"{name}: {self.kills} kills in {self.runs} runs ({where}); lost by a kill: "
            f"{sum(lost) / len(lost):.1f} batches in the mean, {lost[-1]} at most; {self.restarts} begun anew; "
            f"{len(self.differences)} differences"
        )


def finished(variant: Variant, root: Path, **settings: Any) -> Victim:
    """A run that nobody kills, to its end."""
    victim = Victim(variant, root, **settings)
    victim.lives_for(None)
    victim.leave()
    return victim


def at_random(name: str, folder: Path, kills: int, seed: int) -> Report:
    """Kill the variant at moments of any start, drawn evenly from the time that a whole run takes."""
    variant, report = VARIANTS[name], Report()
    draw = random.Random(f"{seed} {name}")
    unbroken = folder / "unbroken"
    unbroken.mkdir(parents=True)
    began = time.monotonic()
    finished(variant, unbroken)
    whole = time.monotonic() - began
    expected = left_in(unbroken)
    while report.kills < kills:
        root = folder / f"run {report.runs}"
        root.mkdir()
        done, reached, began, before = False, -1, time.monotonic(), report.kills
        while not done:
            victim = Victim(variant, root)
            last = report.kills == kills
            if victim.lives_for(None if last else draw.uniform(0, whole)):
                victim.kill()
            done = victim.leave()
            if reached >= 0 and (done or victim.board[0] > 0):
                report.batches_lost.append(reached - victim.board[2])
                report.restarts += victim.board[2] == 0
                reached = -1
            if not done:
                report.killed(victim.phase)
                reached = max(reached, victim.board[1])
        if report.kills == before:  # nobody killed it: faster than the first, it had the machine for itself
            whole = min(whole, time.monotonic() - began)
        report.compare(root, expected)
        shutil.rmtree(root)
    return report


# --- at each system call of a save ---


def at_each_call(aim: Aim, folder: Path) -> Report:
    """Kill a run at each of the system calls on files that are aimed at.

    Raises:
        Untraceable: It takes ptrace.
    """
    variant, report = VARIANTS[aim.variant], Report()
    for root in (unbroken := folder / "unbroken", before := folder / "before"):
        root.mkdir(parents=True)
    finished(variant, unbroken)
    expected = left_in(unbroken)
    if aim.batches > 2:  # stands right before the save two batches earlier
        Victim(variant, before, counted=aim.batches - 2 * (not aim.of_start), traced=True).killed_at(1)
    while True:
        root = folder / f"call {report.kills + 1}"
        shutil.copytree(before, root)
        counted = aim.batches - 4 if aim.of_start else aim.batches
        victim = Victim(variant, root, counted=counted, traced=True, counts=aim.of_start)
        call = victim.killed_at(report.kills + 1)
        if call is not None:
            report.killed(call)
            again = finished(variant, root)
            report.batches_lost.append(max(0, victim.board[1] - again.board[2]))
            report.restarts += again.board[2] == 0
        report.compare(root, expected)
        shutil.rmtree(root)
        if call is None:
            return report


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--kills", type=int, default=40, help="at random moments, of each variant")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--only", choices=[*VARIANTS, *AIMED], action="append", help="default: all of these")
    arguments.add_argument("--report", type=Path, help="write the numbers to this JSON file")
    asked = arguments.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(io.StringIO()):
        train(Variant(), Path(folder), Told([0] * 4))  # so that all is imported that each process needs
    reports: dict[str, Report] = {}
    for name in asked.only or [*VARIANTS, *AIMED]:
        with tempfile.TemporaryDirectory() as folder:
            try:
                if name in VARIANTS:
                    reports[name] = at_random(name, Path(folder), asked.kills, asked.seed)
                else:
                    reports[name] = at_each_call(AIMED[name], Path(folder))
            except Untraceable as error:
                print(f"{name}: left out, since {error}")
                continue
        print(reports[name].line(name), flush=True)
    if asked.report:
        asked.report.write_text(json.dumps({name: asdict(report) for name, report in reports.items()}, indent=1))
    differences = [difference for report in reports.values() for difference in report.differences]
    kills = sum(report.kills for report in reports.values())
    print(f"torch {torch.__version__}: {kills} kills, {len(differences)} differences", *sorted(set(differences)))
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
