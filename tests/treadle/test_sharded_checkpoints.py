"""Checkpoints of which each rank writes and reads its part: on real ranks, killed, damaged, hostile, and made one file."""

from __future__ import annotations

import io
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint  # before forking: each rank would import them
import torch.distributed.fsdp
import torch.distributed.tensor.parallel
from rank_training import Left, Net, Plan, require_equal, samples_by_step, train, trainer_for
from ranks import on_ranks, on_trainer_ranks
from torch import Tensor, nn

import treadle
from treadle.callbacks import EMAWeightAveraging
from treadle.checkpoint import exists, link, read, remove, write, write_plain
from treadle.checkpoint.__main__ import main
from treadle.checkpoint.conversion import consolidate, shard
from treadle.checkpoint.file import read_plain
from treadle.checkpoint.folder import REST, is_sharded_checkpoint, tidy
from treadle.checkpoint.remote import location
from treadle.checkpoint.sharded import write_sharded
from treadle.collectives import Ranks
from treadle.errors import CheckpointError, ConfigError
from treadle.fabric import Fabric
from treadle.strategies import FSDP, Mesh
from treadle.strategies.sharding import load_whole_optimizer_state, whole
from treadle.testing import Classifier, Points

STRATEGIES: dict[str, Callable[[], Any]] = {
    "single": lambda: "auto",
    "ddp": lambda: "ddp",
    "fsdp": lambda: FSDP(state_dict_type="sharded"),
    "full fsdp": lambda: FSDP(),
    "replicas": lambda: Mesh(data=2, shard=2, state_dict_type="sharded"),
    "tensor parallel": lambda: Mesh(
        shard=2, tensor=2, plan={"*.up": "colwise", "*.down": "rowwise"}, state_dict_type="sharded"
    ),
}


class Layer(nn.Module):
    """Sizes that neither two nor four ranks divide."""

    def __init__(self, width: int = 5, hidden: int = 6) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.register_buffer("mean", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.down(torch.relu(self.up(x)))
        return result


def model(seed: int, **sizes: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(Layer(**sizes), Layer(**sizes))


def placed(strategy: str, seed: int, **sizes: int) -> tuple[Fabric, Any, torch.optim.Optimizer]:
    fabric = Fabric(accelerator="cpu", strategy=STRATEGIES[strategy]())
    fabric.launch()
    module = fabric.setup(model(seed, **sizes))
    return fabric, module, torch.optim.AdamW(module.parameters(), lr=0.1)


def states(module: Any, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    module = getattr(module, "module", module)  # DDP's
    return {key: value.clone() for key, value in whole(module.state_dict()).items()}, whole(optimizer.state_dict())


def saved(path: Path, strategy: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """After three steps."""
    fabric, module, optimizer = placed(strategy, seed=0)
    torch.manual_seed(1)
    for _ in range(3):
        fabric.backward(module(torch.randn(4, 5)).square().mean())
        optimizer.step()
        optimizer.zero_grad()
    fabric.save(path, {"model": module, "optimizer": optimizer, "note": "three", "list": [torch.arange(2)]})
    return states(module, optimizer)


def loaded(path: Path, strategy: str) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    fabric, module, optimizer = placed(strategy, seed=7)
    left = fabric.load(path, {"model": getattr(module, "module", module), "optimizer": optimizer})
    return *states(module, optimizer), left


def require_same(found: Any, expected: Any, at: str = "") -> None:
    assert type(found) is type(expected), at
    if isinstance(expected, Tensor):
        assert torch.equal(found, expected), at
        assert found.dtype == expected.dtype, at
    elif isinstance(expected, dict):
        assert list(found) == list(expected), at
        for key, value in expected.items():
            require_same(found[key], value, f"{at}[{key!r}]")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), at
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            require_same(one, other, f"{at}[{index}]")
    else:
        assert found == expected, at


class TestSavedOnSomeRanks:
    @pytest.mark.parametrize(
        "count, strategy, others",
        [
            (
                2,
                "fsdp",
                [(2, "fsdp"), (4, "fsdp"), (3, "full fsdp"), (1, "single"), (2, "ddp"), (4, "tensor parallel")],
            ),
            (4, "tensor parallel", [(4, "tensor parallel"), (2, "fsdp"), (1, "single"), (4, "replicas")]),
            (4, "replicas", [(3, "fsdp"), (1, "single")]),
            (1, "fsdp", [(2, "fsdp")]),
        ],
    )
    def test_loads_bit_by_bit_on_any_number_with_any_strategy(
        self, tmp_path: Path, count: int, strategy: str, others: list[tuple[int, str]]
    ) -> None:
        """Weights and optimizer, with sizes that don't divide."""
        path = tmp_path / "x.ckpt"
        weights, moments = on_trainer_ranks(count, saved, path, strategy)[0]
        assert is_sharded_checkpoint(path)
        for ranks, other in others:
            for found, optimizer, left in on_trainer_ranks(ranks, loaded, path, other):
                require_same(found, weights)
                require_same(optimizer["state"], moments["state"])
                require_same(left, {"note": "three", "list": [torch.arange(2)]})

    def test_made_one_file_is_the_file_that_gathering_would_have_written(self, tmp_path: Path) -> None:
        """Byte by byte; and in three pieces, and one file again."""
        on_trainer_ranks(2, saved, tmp_path / "sharded.ckpt", "fsdp")
        on_trainer_ranks(2, saved, tmp_path / "full.ckpt", "full fsdp")
        consolidate(tmp_path / "sharded.ckpt", tmp_path / "one.ckpt")
        assert (tmp_path / "one.ckpt").read_bytes() == (tmp_path / "full.ckpt").read_bytes()
        shard(tmp_path / "one.ckpt", tmp_path / "pieces.ckpt", 3)
        assert len(list((tmp_path / "pieces.ckpt").glob("*.distcp"))) == 3
        consolidate(tmp_path / "pieces.ckpt", tmp_path / "again.ckpt")
        assert (tmp_path / "again.ckpt").read_bytes() == (tmp_path / "full.ckpt").read_bytes()

    def test_is_loaded_from_the_pieces_that_one_file_was_made_into(self, tmp_path: Path) -> None:
        weights, moments = on_trainer_ranks(1, saved, tmp_path / "one.ckpt", "single")[0]
        shard(tmp_path / "one.ckpt", tmp_path / "pieces.ckpt", 3)
        for found, optimizer, _ in on_trainer_ranks(2, loaded, tmp_path / "pieces.ckpt", "fsdp"):
            require_same(found, weights)
            require_same(optimizer["state"], moments["state"])

    def test_is_not_read_where_it_does_not_fit(self, tmp_path: Path) -> None:
        path = tmp_path / "x.ckpt"
        on_trainer_ranks(1, saved, path, "fsdp")
        content = read_plain(path)
        with pytest.raises(RuntimeError, match=r"size mismatch for 0\.up\.weight"):
            Fabric(accelerator="cpu").load(path, {"model": model(0, hidden=7)})
        with pytest.raises(ValueError, match="group"):
            load_whole_optimizer_state(torch.optim.AdamW([nn.Parameter(torch.ones(2))]), content["optimizer"])


def used(path: Path, strategy: str, save: bool) -> dict[str, int]:
    """Bytes of memory at the most, beyond what was used before, and bytes read and written, by one save or load."""
    fabric, module, _ = placed(strategy, 0, width=512, hidden=2048)
    fabric.save(path.with_name("warm.ckpt"), {"model": module})
    fabric.load(path.with_name("warm.ckpt"), {"model": module})
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest use so far
    before = _counted()
    if save:
        fabric.save(path, {"model": module})
    else:
        fabric.load(path, {"model": module})
    after = _counted()
    return {
        "memory": after["VmHWM"] * 1024 - before["VmRSS"] * 1024,
        **{key: after[key] - before[key] for key in ("rchar", "wchar")},
    }


def _counted() -> dict[str, int]:
    text = Path("/proc/self/status").read_text() + Path("/proc/self/io").read_text()
    return {key: int(value) for key, value in re.findall(r"^(Vm\w+|[rw]char):\s+(\d+)", text, re.MULTILINE)}


WHOLE = 2 * (2 * 512 * 2048 + 2048 + 2 * 512) * 4
"""Bytes of the weights."""
ONE = 512 * 2048 * 4
"""Of the largest tensor."""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="counts by Linux's /proc")
class TestNothingIsWholeOnARank:
    def test_each_writes_its_part_to_a_file_of_its_own(self, tmp_path: Path) -> None:
        counts = on_trainer_ranks(4, used, tmp_path / "x.ckpt", "fsdp", True)
        sizes = [file.stat().st_size for file in (tmp_path / "x.ckpt").glob("*.distcp")]
        assert len(sizes) == 4
        for size in sizes:
            assert WHOLE / 4 <= size < WHOLE / 4 * 1.02
        assert (tmp_path / "x.ckpt" / REST).stat().st_size < WHOLE / 100
        for of_rank in counts:
            assert WHOLE / 4 <= of_rank["wchar"] < WHOLE / 3
            assert of_rank["memory"] < ONE

    @pytest.mark.parametrize("before", ["fsdp", "tensor parallel"])
    def test_each_reads_its_part_into_it(self, tmp_path: Path, before: str) -> None:
        """Memory: the new part beside the old one, and less than one whole tensor."""
        on_trainer_ranks(4, used, tmp_path / "x.ckpt", before, True)
        for of_rank in on_trainer_ranks(4, used, tmp_path / "x.ckpt", before, False):
            assert of_rank["memory"] < WHOLE / 4 + ONE
            assert of_rank["rchar"] < WHOLE / 2


PLANS = {
    "inside an epoch": Plan(module={"dropout": 0.3}, trainer={"max_epochs": 3}),
    "inside a window": Plan(
        module={"dropout": 0.3, "weighted": True}, trainer={"max_epochs": 3, "accumulate_grad_batches": 2}
    ),
    "with an average": Plan(module={"dropout": 0.3}, trainer={"max_epochs": 3}),
}


class StopsAfter(treadle.Callback):
    def __init__(self, batches: int) -> None:
        self.batches, self.seen = batches, 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen += 1
        if self.seen == self.batches:
            trainer.should_stop = True


def with_callbacks(plan: Plan, *callbacks: treadle.Callback) -> Plan:
    return Plan(**{**vars(plan), "trainer": {**plan.trainer, "callbacks": list(callbacks)}})


def stopped_and_resumed(folder: Path, count: int) -> dict[str, tuple[Left, Left]]:
    found = {}
    for name, plan in PLANS.items():
        average = [EMAWeightAveraging(0.5)] if name == "with an average" else []
        unbroken = train(with_callbacks(plan, *average), folder / name / "whole", count, STRATEGIES["fsdp"]())
        average = [EMAWeightAveraging(0.5)] if average else []
        train(with_callbacks(plan, StopsAfter(5), *average), folder / name / "parts", count, STRATEGIES["fsdp"]())
        torch.manual_seed(99)
        average = [EMAWeightAveraging(0.5)] if average else []
        parts = folder / name / "parts"
        resumed = train(with_callbacks(plan, *average), parts, count, STRATEGIES["fsdp"](), ckpt_path="last")
        found[name] = (unbroken, resumed)
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("runs")
    return folder, on_trainer_ranks(2, stopped_and_resumed, folder, 2)


def newest(folder: Path) -> Path:
    return folder / "runs/version_0/checkpoints/last.ckpt"


@pytest.mark.parametrize("name", PLANS)
class TestARunOnTwoRanksStoppedAndResumed:
    def test_is_the_unbroken_run_bit_by_bit(self, runs: tuple[Path, list[dict[str, Any]]], name: str) -> None:
        for rank in runs[1]:
            unbroken, resumed = rank[name]
            require_same(resumed.weights, unbroken.weights)
            assert resumed.metrics == unbroken.metrics
            assert 0 < len(resumed.seen) < len(unbroken.seen)
            assert resumed.seen == unbroken.seen[-len(resumed.seen) :]
        assert runs[1][0][name][1].rows == runs[1][0][name][0].rows

    def test_has_saved_the_same_state(self, runs: tuple[Path, list[dict[str, Any]]], name: str) -> None:
        """Optimizer and average too."""
        ours, theirs = (read(newest(runs[0] / name / part)) for part in ("parts", "whole"))
        assert is_sharded_checkpoint(newest(runs[0] / name / "parts"))
        for key in ("state_dict", "optimizer_states", "gradients", "rng", "ema"):
            require_same(whole(ours.get(key)), whole(theirs.get(key)))

    def test_leaves_nothing_beside_its_checkpoints(self, runs: tuple[Path, list[dict[str, Any]]], name: str) -> None:
        folder = newest(runs[0] / name / "parts").parent
        named = {str(path.readlink()) for path in folder.iterdir() if path.is_symlink()}
        assert {path.name for path in folder.glob(".*") if path.is_dir()} == named


def some_steps(folder: Path, count: int) -> Left:
    return train(Plan(trainer={"max_steps": 4}), folder, count, STRATEGIES["fsdp"]())


def the_rest(folder: Path, count: int, strategy: str) -> Left:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", treadle.errors.TreadleWarning)
        return train(Plan(trainer={"max_epochs": 3}), folder, count, STRATEGIES[strategy](), ckpt_path="last")


def evaluated(path: Path, strategy: str, meta: bool) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    trainer = trainer_for(path.parent.parent, STRATEGIES[strategy](), logger=False)
    with torch.device("meta" if meta else "cpu"):
        module = Evaluated()
    metrics = trainer.test(module, ckpt_path=path, verbose=False)
    return metrics, whole(module.state_dict())


class Evaluated(Net):
    def test_dataloader(self) -> Any:
        return [torch.randn(4, 4, generator=torch.Generator().manual_seed(index)) for index in range(4)]

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("total", self.net(batch).sum(), reduce_fx="sum")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run on two ranks that was stopped."""
    folder = tmp_path_factory.mktemp("some")
    on_trainer_ranks(2, some_steps, folder, 2)
    return folder


class TestARunOnAnotherNumberOfRanks:
    @pytest.mark.parametrize("after, then", [(4, "fsdp"), (1, "single"), (2, "ddp")])
    def test_goes_on_with_the_same_samples_and_weights(
        self, folder: Path, tmp_path: Path, after: int, then: str
    ) -> None:
        single = train(Plan(trainer={"max_epochs": 3}), tmp_path / "one", 1, "auto")
        own = tmp_path / "several"
        subprocess.run(["cp", "-a", folder, own], check=True)
        left = [the_rest(own, 1, then)] if after == 1 else on_trainer_ranks(after, the_rest, own, after, then)
        ours, theirs = samples_by_step(left), samples_by_step([single])
        assert ours == {step: theirs[step] for step in ours}
        assert len(ours) == 5
        for of_rank in left:
            require_equal(of_rank, single)

    @pytest.mark.parametrize("count, strategy, meta", [(1, "single", False), (2, "fsdp", False), (2, "fsdp", True)])
    def test_is_evaluated(self, folder: Path, count: int, strategy: str, meta: bool) -> None:
        """Of a module that has weights already, or none yet: those of the checkpoint."""
        expected = Net.load_from_checkpoint(newest(folder)).state_dict()
        results = on_trainer_ranks(count, evaluated, newest(folder), strategy, meta)
        for metrics, weights in results:
            require_same(weights, expected)
            assert metrics[0]["total"] == pytest.approx(
                sum(self.total(expected, index) for index in range(4)), rel=1e-5
            )

    def total(self, weights: dict[str, Tensor], index: int) -> float:
        module = Net()
        module.load_state_dict(weights)
        batch = torch.randn(4, 4, generator=torch.Generator().manual_seed(index))
        return module.eval().net(batch).sum().item()

    def test_gives_hooks_tensors(self, folder: Path) -> None:
        """A hook that renames and changes weights finds a dict of tensors."""

        class Renames(Net):
            def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
                state = checkpoint["state_dict"]
                checkpoint["state_dict"] = {name: 2 * value for name, value in state.items()}

        doubled, plain = Renames.load_from_checkpoint(newest(folder)), Net.load_from_checkpoint(newest(folder))
        require_same(dict(doubled.state_dict()), {name: 2 * value for name, value in plain.state_dict().items()})

    def test_gives_every_way_of_copying_a_dict_tensors(self, folder: Path) -> None:
        state = read(newest(folder))["state_dict"]
        for copied in (dict(state), {**state}, state.copy(), state | {}, {} | state, dict(state.items())):
            assert all(isinstance(value, Tensor) for value in copied.values())
        assert isinstance(state.pop("net.0.bias"), Tensor)
        assert "net.0.bias" not in state
        assert "StoredTensor" in repr(state)


def content(number: float, ranks: Ranks) -> dict[str, Any]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (ranks.size,))
    tensors = {name: distribute_tensor(torch.full((40, 3), number), mesh, [Shard(0)]) for name in ("a", "b")}
    return {"state": tensors, "number": number}


def wrote(ranks: Ranks, path: Path, number: float) -> None:
    write_sharded(path, content(number, ranks), ranks)


def number_in(path: Path) -> float:
    """Of what is there, which must be all of one state."""
    found = read_plain(path)
    for tensor in found["state"].values():
        assert torch.equal(tensor, torch.full((40, 3), found["number"]))
    return float(found["number"])


def killed_while_writing(ranks: Ranks, path: Path, moment: int) -> int:
    """All ranks, by rank 0 before its ``moment``-th step on the disk. Returns how many there are if there are fewer."""
    pids, steps = ranks.gather_objects(os.getpid()), 0

    def deadly(step: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **settings: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps == moment:
                for pid in [pid for pid in pids if pid != os.getpid()] + [os.getpid()]:
                    os.kill(pid, signal.SIGKILL)
            return step(*arguments, **settings)

        return called

    if ranks.rank == 0:
        for name in ("fsync", "replace", "rename", "symlink", "rmdir"):
            setattr(os, name, deadly(getattr(os, name)))
    wrote(ranks, path, 2.0)
    return steps


class TestKilled:
    def test_at_any_step_leaves_the_checkpoint_before_or_the_new_one(self, tmp_path: Path) -> None:
        """Real SIGKILLs of both ranks. The next one that is written clears away what is left."""
        path = tmp_path / "x.ckpt"
        on_ranks(2, wrote, path, 1.0)
        found = []
        for moment in range(1, 100):
            on_ranks(2, wrote, path, 1.0)
            assert len(list(tmp_path.glob(".*"))) == 1
            try:
                steps = on_ranks(2, killed_while_writing, path, moment)[0]
            except AssertionError as died:
                assert "died without a word" in str(died)  # noqa: PT017
                found.append(number_in(path))
                continue
            assert steps == moment - 1
            break
        assert found == sorted(found)
        assert found.count(1.0) > 3
        assert found.count(2.0) > 1

    def test_in_a_folder_of_one_s_own_leaves_nothing_that_tidying_does_not_remove(self, tmp_path: Path) -> None:
        with pytest.raises(AssertionError, match="died without a word"):
            on_ranks(2, killed_while_writing, tmp_path / "x.ckpt", 2)
        assert not exists(tmp_path / "x.ckpt")
        assert list(tmp_path.glob(".x.ckpt.*.shards"))
        on_ranks(1, wrote, tmp_path / "y.ckpt", 3.0)
        tidy(tmp_path)
        assert not list(tmp_path.glob(".x.ckpt.*"))
        assert number_in(tmp_path / "y.ckpt") == 3.0


def full_disk(ranks: Ranks, path: Path) -> str:
    if ranks.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (512, resource.RLIM_INFINITY))
    try:
        wrote(ranks, path, 2.0)
    except OSError as error:
        return str(error)
    return ""


def unholdable(ranks: Ranks, path: Path) -> str:
    try:
        write_sharded(path, {**content(2.0, ranks), "number": object()}, ranks)
    except CheckpointError as error:
        return str(error)
    return ""


class TestARankThatCanNotWrite:
    def test_fails_on_every_rank_and_leaves_the_one_before(self, tmp_path: Path) -> None:
        on_ranks(2, wrote, tmp_path / "x.ckpt", 1.0)
        messages = on_ranks(2, full_disk, tmp_path / "x.ckpt")
        assert all("File too large" in message for message in messages)
        assert number_in(tmp_path / "x.ckpt") == 1.0
        assert len(list(tmp_path.iterdir())) == 2

    def test_a_value_that_no_file_can_hold_is_named_on_every_rank(self, tmp_path: Path) -> None:
        messages = on_ranks(2, unholdable, tmp_path / "x.ckpt")
        assert all("x['number'] is a builtins.object" in message for message in messages)
        assert not list(tmp_path.iterdir())


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """A sharded checkpoint of two pieces."""
    tensors = {name: torch.full((40, 3), 1.0) for name in ("a", "b")}
    write_plain(tmp_path / "one.ckpt", {"state": tensors, "number": 1.0})
    shard(tmp_path / "one.ckpt", tmp_path / "x.ckpt", 2)
    (tmp_path / "one.ckpt").unlink()
    return tmp_path / "x.ckpt"


FILES = ("__0_0.distcp", "__1_0.distcp", REST, ".metadata")


class TestDamaged:
    @pytest.mark.parametrize("file", FILES)
    @pytest.mark.parametrize("how", ["truncated", "flipped", "missing", "longer"])
    def test_is_told_with_words(self, there: Path, file: str, how: str) -> None:
        damaged, whole_file = there / file, (there / file).read_bytes()
        at = whole_file.index(b"PK\x01\x02") if file == REST else len(whole_file) // 2  # the first is a zip archive
        if how == "missing":
            damaged.unlink()
        elif how == "flipped":
            damaged.write_bytes(whole_file[:at] + bytes([whole_file[at] ^ 1]) + whole_file[at + 1 :])
        else:
            damaged.write_bytes(whole_file[:at] if how == "truncated" else whole_file + b"\0" * 99_999)
        with pytest.raises(CheckpointError) as raised:
            number_in(there)
        assert "x.ckpt" in raised.value.what
        assert raised.value.fix

    @pytest.mark.parametrize("file", FILES[:2])
    def test_anywhere_in_a_shard_is_seen(self, there: Path, file: str) -> None:
        whole_file = (there / file).read_bytes()
        for at in range(0, len(whole_file), 97):
            (there / file).write_bytes(whole_file[:at] + bytes([whole_file[at] ^ 64]) + whole_file[at + 1 :])
            with pytest.raises(CheckpointError, match="has other bytes than were written"):
                number_in(there)

    def test_a_link_without_its_folder_says_so(self, there: Path) -> None:
        moved = there.parent / "elsewhere"
        moved.mkdir()
        there.replace(moved / "x.ckpt")
        with pytest.raises(CheckpointError, match="both together"):
            read(moved / "x.ckpt")
        assert not exists(moved / "x.ckpt")


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


class TestHostile:
    def test_an_index_that_executes_is_never_unpickled(self, there: Path, tmp_path: Path) -> None:
        mark = tmp_path / "executed"
        (there / ".metadata").write_bytes(pickle.dumps(Evil(mark)))
        with pytest.raises(CheckpointError, match="is damaged"):
            number_in(there)
        rest = read_plain(there / REST)  # whoever made it would make the sums right
        rest["sizes"][".metadata"] = (there / ".metadata").stat().st_size
        rest["index_sum"] = zlib.crc32((there / ".metadata").read_bytes())
        write_plain(there / REST, rest)
        assert number_in(there) == 1.0
        assert not mark.exists()

    @pytest.mark.parametrize("evil", ["object", "another tensor", "pickle"])
    def test_a_shard_that_holds_something_else_is_refused(self, there: Path, tmp_path: Path, evil: str) -> None:
        mark, buffer = tmp_path / "executed", io.BytesIO()
        if evil == "pickle":
            buffer.write(pickle.dumps(Evil(mark)))
        else:
            torch.save(Evil(mark) if evil == "object" else torch.ones(2), buffer)
        (there / "__0_0.distcp").write_bytes(buffer.getvalue())
        rest = read_plain(there / REST)
        rest["sizes"]["__0_0.distcp"] = len(buffer.getvalue())
        for entry in rest["table"].values():
            for piece in entry["pieces"]:
                if piece["file"] == "__0_0.distcp":
                    piece.update(start=0, length=len(buffer.getvalue()))
                    piece["sum"] = zlib.crc32(buffer.getvalue())
        write_plain(there / REST, rest)
        with pytest.raises(CheckpointError, match="is damaged"):
            number_in(there)
        assert not mark.exists()

    @pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "sub/__0_0.distcp", REST])
    def test_a_name_that_leaves_the_folder_is_refused(self, there: Path, name: str) -> None:
        rest = read_plain(there / REST)
        next(iter(rest["table"].values()))["pieces"][0]["file"] = name
        write_plain(there / REST, rest)
        with pytest.raises(CheckpointError, match="no name of a shard"):
            read_plain(there)

    @pytest.mark.parametrize(
        "change",
        [
            {"offsets": [-1, 0]},
            {"sizes": [20, 2]},
            {"sizes": [20]},
            {"length": -1},
            {"offsets": "ab"},
        ],
    )
    def test_a_table_that_can_not_be_is_refused(self, there: Path, change: dict[str, Any]) -> None:
        rest = read_plain(there / REST)
        next(iter(rest["table"].values()))["pieces"][1].update(change)
        write_plain(there / REST, rest)
        with pytest.raises(CheckpointError, match="is damaged"):
            number_in(there)

    @pytest.mark.parametrize("change", [{"format": 9}, {"sharded": {("state", "a"): "no such"}}, {"table": {"a": 1}}])
    def test_so_is_a_rest_that_is_another_s(self, there: Path, change: dict[str, Any]) -> None:
        rest = read_plain(there / REST)
        write_plain(there / REST, {**rest, **change})
        with pytest.raises(CheckpointError):
            read_plain(there)


class TestSeveralNames:
    def test_a_link_stays_when_the_first_name_goes(self, there: Path) -> None:
        other = there.with_name("last.ckpt")
        link(there, other)
        assert other.samefile(there)
        remove(there)
        assert number_in(other) == 1.0
        remove(other)
        assert not list(there.parent.iterdir())

    def test_a_link_in_another_folder_shares_the_bytes(self, there: Path, tmp_path: Path) -> None:
        (tmp_path / "kept").mkdir()
        other = tmp_path / "kept/best.ckpt"
        link(there, other)
        assert (other / FILES[0]).samefile(there / FILES[0])
        remove(there)
        assert number_in(other) == 1.0

    def test_a_name_that_is_given_anew_lets_go_of_what_it_named(self, there: Path) -> None:
        shard(there, there.with_name("y.ckpt"), 1)
        link(there.with_name("y.ckpt"), there)
        assert len([path for path in there.parent.iterdir() if path.is_dir() and not path.is_symlink()]) == 1
        assert number_in(there) == 1.0

    def test_a_file_takes_the_place_of_one_and_the_other_way_round(self, there: Path) -> None:
        write_plain(there, {"state": {}, "number": 5.0})
        assert not is_sharded_checkpoint(there)
        assert number_in(there) == 5.0
        tidy(there.parent)
        assert [path.name for path in there.parent.iterdir()] == ["x.ckpt"]
        shard(there, there.with_name("y.ckpt"), 1)
        link(there.with_name("y.ckpt"), there)
        assert is_sharded_checkpoint(there)

    def test_a_copy_of_the_files_is_a_checkpoint_too(self, there: Path) -> None:
        subprocess.run(["cp", "-rL", there, there.with_name("copy.ckpt")], check=True)
        assert number_in(there.with_name("copy.ckpt")) == 1.0
        remove(there.with_name("copy.ckpt"))
        assert not there.with_name("copy.ckpt").exists()

    def test_a_folder_of_something_else_is_left_alone(self, there: Path) -> None:
        (there.parent / "mine.ckpt").mkdir()
        with pytest.raises(OSError):  # noqa: PT011  # the system's own, whichever it is
            remove(there.parent / "mine.ckpt")
        assert not exists(there.parent / "mine.ckpt")


class TestSettings:
    @pytest.mark.parametrize("strategy", [FSDP, Mesh])
    def test_an_unknown_way_of_saving_is_refused(self, strategy: Any) -> None:
        with pytest.raises(ConfigError, match="did you mean 'sharded'"):
            strategy(state_dict_type="shard")

    def test_a_store_takes_whole_files_only(self, there: Path) -> None:
        with pytest.raises(ConfigError, match="can't be a sharded checkpoint"):
            link(there, location("memory://bucket/x.ckpt"))

    def test_one_file_is_the_default(self) -> None:
        assert FSDP().state_dict_type == Mesh().state_dict_type == "full"


class TestTheCommand:
    def test_makes_one_file(self, there: Path) -> None:
        one = there.with_name("one.ckpt")
        command = [sys.executable, "-m", "treadle.checkpoint", "consolidate", str(there), str(one)]
        made = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        assert (made.returncode, made.stderr) == (0, "")
        assert made.stdout == f"{one}: one file, {one.stat().st_size:,} bytes\n"
        assert number_in(one) == 1.0

    def test_makes_pieces(self, there: Path, capsys: pytest.CaptureFixture[str]) -> None:
        pieces = there.with_name("pieces.ckpt")
        assert main(["shard", str(there), str(pieces), "--pieces", "4"]) == 0
        assert capsys.readouterr() == (f"{pieces}: 4 pieces\n", "")
        assert number_in(pieces) == 1.0

    @pytest.mark.parametrize(
        "arguments, says",
        [
            (["consolidate", "x.ckpt", "x.ckpt"], "there is a x.ckpt already."),
            (["consolidate", "no.ckpt", "one.ckpt"], "no.ckpt is not a checkpoint file."),
            (["consolidate", "plain.ckpt", "one.ckpt"], "plain.ckpt is one file already."),
            (["shard", "plain.ckpt", "one.ckpt", "--pieces", "0"], "pieces=0."),
            (["consolidate", "x.ckpt", "no/one.ckpt"], "no/one.ckpt could not be written: "),
        ],
    )
    def test_says_what_is_wrong_without_a_traceback(
        self,
        there: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        arguments: list[str],
        says: str,
    ) -> None:
        monkeypatch.chdir(there.parent)
        write_plain(Path("plain.ckpt"), {"state": {}})
        Path("no").write_text("a file")
        assert main(arguments) == 1
        assert capsys.readouterr().err.startswith(says)
        assert number_in(there) == 1.0


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file, of a run on one device."""
    root = tmp_path_factory.mktemp("one")
    trainer = treadle.Trainer(max_epochs=1, default_root_dir=root, enable_progress_bar=False)
    trainer.fit(Classifier(), datamodule=Points())
    return newest(root)


class TestACheckpointOfATrainer:
    def test_in_pieces_and_one_file_again_is_the_same(self, one: Path, tmp_path: Path) -> None:
        shard(one, tmp_path / "pieces.ckpt", 2)
        consolidate(tmp_path / "pieces.ckpt", tmp_path / "again.ckpt")
        require_same(read(tmp_path / "again.ckpt"), read(one))

    def test_keeps_what_every_rank_reads_out_of_the_shards(self, one: Path, tmp_path: Path) -> None:
        shard(one, tmp_path / "pieces.ckpt", 2)
        places = read_plain(tmp_path / "pieces.ckpt" / REST)["sharded"]
        assert {at[0] for at in places} == {"state_dict", "optimizer_states"}

    def test_is_written_by_the_same_call_as_any_other(self, one: Path, tmp_path: Path) -> None:
        """What holds stored tensors still, as an average that was read and not used, is saved again."""
        shard(one, tmp_path / "pieces.ckpt", 2)
        write(tmp_path / "again.ckpt", whole(read(tmp_path / "pieces.ckpt")))
        require_same(read(tmp_path / "again.ckpt"), read(one))
