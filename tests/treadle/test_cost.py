"""What a training step costs in Python calls, and what it reads from the device: counted, not timed."""

import gc
import os
import resource
import sys
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import on_ranks
from torch import Tensor, nn
from torch.utils.data import DataLoader

import treadle

FEW, MANY = 20, 120
"""Two fits that differ in their steps only: what starting and ending cost cancels out."""


class Linear(treadle.Module):
    """Logs its loss under as many names as it is told."""

    def __init__(self, names: int = 0, **settings: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 2)
        self.names = [f"loss {index}" for index in range(names)]
        self.settings = settings

    def training_step(self, batch: Tensor) -> Tensor:
        loss: Tensor = self.layer(batch).sum()
        for name in self.names:
            self.log(name, loss, **self.settings)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def calls(run: Callable[[], object]) -> int:
    """How many Python functions ``run`` calls."""
    count = 0

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(None)
    return count


def per_step(fit: Callable[[int], object]) -> float:
    """Calls for each step of ``fit(steps)``."""
    fit(2)  # imports and caches
    return (calls(lambda: fit(MANY)) - calls(lambda: fit(FEW))) / (MANY - FEW)


NOTHING: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}


def fit(steps: int, names: int, trainer: dict[str, Any], **settings: Any) -> None:
    treadle.Trainer(max_epochs=1, **trainer).fit(Linear(names, **settings), [torch.ones(2, 8)] * steps)


def raw(steps: int) -> None:
    layer = nn.Linear(8, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for batch in [torch.ones(2, 8)] * steps:
        loss = layer(batch).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


class TestAStep:
    def test_with_nothing_attached_takes_at_most_150_calls(self, record_property: Any) -> None:
        """A plain loop takes about half of that."""
        ours, theirs = per_step(lambda steps: fit(steps, 0, NOTHING)), per_step(raw)
        record_property("calls per step", ours)
        print(f"calls per step: {ours:.1f}, of a plain loop {theirs:.1f}")
        assert ours <= 150

    @pytest.mark.parametrize("settings", [{}, {"prog_bar": True}, {"on_step": True, "on_epoch": True}], ids=str)
    def test_takes_at_most_20_more_for_each_log(self, settings: dict[str, Any]) -> None:
        one, two, three = (per_step(lambda steps, n=n: fit(steps, n, NOTHING, **settings)) for n in (0, 1, 2))
        print(f"calls per self.log: {two - one:.1f}, then {three - two:.1f}")
        assert two - one <= 20
        assert three - two <= 20

    def test_with_the_defaults_takes_at_most_230(self, tmp_path: Path) -> None:
        """Progress bar, CSV files, checkpoints, and one metric in the bar."""
        defaults = per_step(lambda steps: fit(steps, 1, {"default_root_dir": tmp_path}, prog_bar=True))
        print(f"calls per step with the defaults: {defaults:.1f}")
        assert defaults <= 230

    def test_reads_nothing_from_the_device_between_log_points(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With the defaults and log_every_n_steps=50, 120 steps are two log points and one epoch's end."""
        reads = []
        for name in ("item", "tolist", "__float__", "__int__", "__bool__", "__index__", "numpy", "cpu"):
            method = getattr(Tensor, name)

            def counted(tensor: Tensor, *arguments: Any, method: Any = method, **settings: Any) -> Any:
                if tensor.dtype.is_floating_point:  # not the generators' states
                    reads.append(1)
                return method(tensor, *arguments, **settings)

            monkeypatch.setattr(Tensor, name, counted)
        at: dict[int, int] = {}

        class Notes(treadle.Callback):
            def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
                at[batch_idx] = len(reads)

        trainer = {"default_root_dir": tmp_path, "callbacks": Notes()}
        fit(MANY, 1, trainer, prog_bar=True, on_step=True, on_epoch=True)
        assert {index for index in range(1, MANY) if at[index] != at[index - 1]} == {50, 100}
        assert at[MANY - 1] - at[0] == 2


def batches(steps: int) -> DataLoader[Any]:
    return DataLoader(torch.ones(2 * steps, 8), 2, shuffle=True)  # type: ignore[arg-type]


def raw_loop(model: nn.Module, own: nn.Module, steps: int) -> None:
    """``model`` is what is called, ``own`` has the parameters."""
    optimizer = torch.optim.SGD(own.parameters(), lr=0.1)
    for batch in batches(steps):
        loss = model(batch).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def fabric_loop(fabric: treadle.Fabric, steps: int) -> None:
    layer = nn.Linear(8, 2)
    model, optimizer = fabric.setup(layer, torch.optim.SGD(layer.parameters(), lr=0.1))
    for batch in fabric.setup_dataloaders(batches(steps * fabric.world_size)):
        with fabric.autocast():
            loss = model(batch).sum()
        fabric.backward(loss)
        fabric.step(optimizer)
        optimizer.zero_grad()


def calls_on_a_rank(ranks: Any) -> tuple[float, float]:
    """Of Fabric with DDP, and of a raw loop with DDP."""
    from torch.nn.parallel import DistributedDataParallel

    def raw_ddp(steps: int) -> None:
        layer = nn.Linear(8, 2)
        raw_loop(DistributedDataParallel(layer), layer, steps)

    rank, size = str(ranks.rank), str(ranks.size)
    os.environ.update(RANK=rank, WORLD_SIZE=size, LOCAL_RANK=rank, LOCAL_WORLD_SIZE=size)
    os.environ.update(MASTER_ADDR=ranks.world.address, MASTER_PORT=str(ranks.world.port))  # where they have met
    fabric = treadle.Fabric(accelerator="cpu", strategy="ddp")
    fabric.launch()
    return per_step(lambda steps: fabric_loop(fabric, steps)), per_step(raw_ddp)


class TestAStepOfFabric:
    """In a loop with everything in it: the loader, autocast, backward, step."""

    MORE = 30

    def test_takes_at_most_30_calls_more_than_a_plain_loop(self) -> None:
        fabric = treadle.Fabric(accelerator="cpu", devices=1)
        ours = per_step(lambda steps: fabric_loop(fabric, steps))
        theirs = per_step(lambda steps: raw_loop(layer := nn.Linear(8, 2), layer, steps))
        print(f"calls per step: {ours:.1f}, of a plain loop {theirs:.1f}")
        assert ours - theirs <= self.MORE

    def test_takes_at_most_30_more_on_two_ranks_than_a_loop_with_ddp(self) -> None:
        for ours, theirs in on_ranks(2, calls_on_a_rank):
            print(f"calls per step: {ours:.1f}, of a loop with DDP {theirs:.1f}")
            assert ours - theirs <= self.MORE


class Endless:
    """The same batch for ever."""

    def __iter__(self) -> Iterator[Tensor]:
        return repeat(torch.ones(2, 8))


class TestALongRun:
    def test_takes_no_more_memory_at_its_end(self, tmp_path: Path) -> None:
        """100,000 steps with a logger and metrics on steps and over the epoch: after the first thousand, nothing piles
        up, neither Python's objects nor pages of the process."""
        found: list[tuple[int, int]] = []

        class Measures(treadle.Callback):
            def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
                if batch_idx in (2_000, 99_999):
                    gc.collect()
                    pages = int(Path("/proc/self/statm").read_text().split()[1])
                    found.append((len(gc.get_objects()), pages * resource.getpagesize()))

        trainer = {"logger": True, "default_root_dir": tmp_path, "enable_checkpointing": False}
        treadle.Trainer(max_steps=100_000, callbacks=Measures(), enable_progress_bar=False, **trainer).fit(
            Linear(1, on_step=True, on_epoch=True), Endless()
        )
        (objects, memory), (later_objects, later_memory) = found
        assert later_objects - objects < 100
        assert later_memory - memory < 8 * 2**20
