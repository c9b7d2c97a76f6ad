"""A run that was stopped goes on as if it never had been."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, Subset, WeightedRandomSampler

import treadle
from treadle.callbacks import EarlyStopping, ModelCheckpoint
from treadle.errors import TreadleWarning
from treadle.testing import Classifier, NoisyPoints, Points

BATCHES, EPOCHS = 5, 2


class Killed(BaseException):
    """Stands for SIGKILL in tests that stop at every batch: no handler of the Trainer may save anything on it."""


class KillAfter(treadle.Callback):
    """Dies after so many batches, once that batch's state could have been saved."""

    def __init__(self, batches: int | None) -> None:
        self.batches = batches

    def on_train_batch_start(
        self, trainer: treadle.Trainer, module: treadle.Module, batch: Any, batch_idx: int
    ) -> None:
        if trainer.progress.batches == self.batches:
            raise Killed


def run(
    root: Path,
    loader: Any,
    *,
    kill_after: int | None = None,
    ckpt_path: str | None = None,
    module: type[Classifier] = Classifier,
    every: str = "1 step",
    save_top_k: int = 1,
    own_validation: bool = False,
    **settings: Any,
) -> tuple[Classifier, str]:
    """Train with a checkpoint after each batch. Returns the module and its rows."""
    treadle.seed_everything(7 if ckpt_path is None else 999)  # a resumed process starts from another state
    model = module()
    settings = {"max_epochs": EPOCHS, "log_every_n_steps": 1, "enable_progress_bar": False, **settings}
    callbacks = [
        KillAfter(kill_after),
        ModelCheckpoint(every=every, save_top_k=save_top_k),
        *settings.pop("callbacks", []),
    ]
    trainer = treadle.Trainer(default_root_dir=root, callbacks=callbacks, **settings)
    try:
        trainer.fit(model, loader, None if own_validation else Points().val_dataloader(), ckpt_path=ckpt_path)
    except Killed:
        assert kill_after is not None
    rows = root / "runs/version_0/metrics.csv"
    return model, rows.read_text() if rows.exists() else ""


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def assert_resumes_exactly(tmp_path: Path, make_loader: Any, kills: Any, **settings: Any) -> None:
    whole, rows = run(tmp_path / "whole", make_loader(), **settings)
    for kill in kills:
        root = tmp_path / f"killed after {kill}"
        first, _ = run(root, make_loader(), kill_after=kill, **settings)
        second, resumed_rows = run(root, make_loader(), ckpt_path="last", **settings)
        assert first.seen + second.seen == whole.seen, f"samples differ after {kill} batches"
        assert same_weights(second, whole), f"weights differ after {kill} batches"
        assert resumed_rows == rows, f"rows differ after {kill} batches"


class TestKilledAfterAnyBatch:
    KILLS = range(1, BATCHES * EPOCHS)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_goes_on_bit_for_bit(self, tmp_path: Path, workers: int) -> None:
        """Shuffled, with augmentation and dropout: the same samples, weights and rows."""
        kills = self.KILLS if workers == 0 else (2, 5, 7)
        assert_resumes_exactly(tmp_path, lambda: DataLoader(NoisyPoints(), 4, shuffle=True, num_workers=workers), kills)

    def test_with_persistent_workers(self, tmp_path: Path) -> None:
        def loader() -> DataLoader[Any]:
            return DataLoader(NoisyPoints(), 4, shuffle=True, num_workers=2, persistent_workers=True)

        assert_resumes_exactly(tmp_path, loader, (3, 7))

    def test_inside_an_accumulation_window(self, tmp_path: Path) -> None:
        """Gradients of a window that is still open are state too."""
        assert_resumes_exactly(
            tmp_path, self.shuffled, self.KILLS, accumulate_grad_batches=3, callbacks=[SaveEachBatch()]
        )

    def test_between_validations_inside_an_epoch(self, tmp_path: Path) -> None:
        assert_resumes_exactly(tmp_path, self.shuffled, self.KILLS, val_check_interval=2)

    def test_with_gradients_clipped_and_a_limit(self, tmp_path: Path) -> None:
        assert_resumes_exactly(tmp_path, self.shuffled, range(1, 6), gradient_clip_val=0.1, limit_train_batches=3)

    def test_when_checkpoints_are_rarer_than_batches(self, tmp_path: Path) -> None:
        """What was done after the last checkpoint is done again, with the same result; its rows are not doubled."""
        whole, rows = run(tmp_path / "whole", self.shuffled(), every="3 steps")
        run(tmp_path / "killed", self.shuffled(), kill_after=8, every="3 steps")
        again, again_rows = run(tmp_path / "killed", self.shuffled(), ckpt_path="last", every="3 steps")
        assert again.seen == whole.seen[6:]
        assert same_weights(again, whole)
        assert again_rows == rows

    def test_when_hooks_of_the_start_draw_and_log(self, tmp_path: Path) -> None:
        """They run again in the new process, and leave no trace there."""
        assert_resumes_exactly(tmp_path, self.shuffled, self.KILLS, module=DrawsAndLogsAtStarts)

    def test_twice(self, tmp_path: Path) -> None:
        whole, rows = run(tmp_path / "whole", self.shuffled())
        run(tmp_path / "killed", self.shuffled(), kill_after=3)
        run(tmp_path / "killed", self.shuffled(), kill_after=8, ckpt_path="last")
        last, last_rows = run(tmp_path / "killed", self.shuffled(), ckpt_path="last")
        assert same_weights(last, whole)
        assert last_rows == rows

    @staticmethod
    def shuffled() -> DataLoader[Any]:
        return DataLoader(NoisyPoints(), 4, shuffle=True)


class DrawsAndLogsAtStarts(Classifier):
    """Its hooks of starts draw numbers and log sums: repeated by a resumed process, they must not count twice."""

    def on_train_start(self) -> None:
        self.log("started", float(torch.rand(())), reduce_fx="sum")

    def on_train_epoch_start(self) -> None:
        self.log("epochs", float(torch.rand(())), reduce_fx="sum")


class SaveEachBatch(treadle.Callback):
    """Saves ``last.ckpt`` at every savepoint, inside accumulation windows too."""

    def on_savepoint(self, trainer: treadle.Trainer, module: treadle.Module, final: bool) -> None:
        trainer.save_checkpoint(trainer.run_folder / "checkpoints" / "last.ckpt")


class TestKilledBetweenEpochs:
    def test_goes_on_from_a_checkpoint_of_the_epochs_end(self, tmp_path: Path) -> None:
        """The default rhythm: the next epoch is shuffled as it would have been."""
        loader = TestKilledAfterAnyBatch.shuffled
        whole, rows = run(tmp_path / "whole", loader(), every="1 epoch")
        run(tmp_path / "killed", loader(), kill_after=BATCHES + 2, every="1 epoch")
        second, second_rows = run(tmp_path / "killed", loader(), ckpt_path="last", every="1 epoch")
        assert second.seen == whole.seen[BATCHES:]
        assert same_weights(second, whole)
        assert second_rows == rows


class DrawsAsItGoes(Sampler[int]):
    """A user's sampler that takes every index from a global generator when it is asked for it."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __len__(self) -> int:
        return 20

    def __iter__(self) -> Iterator[int]:
        for _ in range(20):
            match self.kind:
                case "python":
                    yield random.randrange(20)
                case "numpy":
                    yield int(np.random.randint(20))
                case _:
                    yield int(torch.randint(20, ()))


class OwnsAGenerator(DrawsAsItGoes):
    """And one that draws from a generator of its own, which differs in each epoch."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.generator = {
            "python": random.Random(1),
            "numpy": np.random.default_rng(1),
            "torch": torch.Generator().manual_seed(1),
        }[kind]

    def __iter__(self) -> Iterator[int]:
        for _ in range(20):
            if isinstance(self.generator, torch.Generator):
                yield int(torch.randint(20, (), generator=self.generator))
            elif isinstance(self.generator, random.Random):
                yield self.generator.randrange(20)
            else:
                yield int(self.generator.integers(20))


class AugmentedByNumpy(NoisyPoints):
    """Augmentation from ``random`` and ``numpy`` in place of torch."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        identity, point, label = super().__getitem__(index)
        return identity, point + random.random() / 10 + float(np.random.rand()) / 10, label


class TestSamplersOfManyKinds:
    KILLS = (1, 4, 5, 7)

    def check(self, tmp_path: Path, **options: Any) -> None:
        assert_resumes_exactly(
            tmp_path, lambda: DataLoader(NoisyPoints(), **{k: v() for k, v in options.items()}), self.KILLS
        )

    def test_weighted(self, tmp_path: Path) -> None:
        self.check(tmp_path, sampler=lambda: WeightedRandomSampler([1.0, 2.0] * 10, 20), batch_size=lambda: 4)

    @pytest.mark.parametrize("kind", ["python", "numpy", "torch"])
    def test_a_users_that_draws_from_a_global_generator(self, tmp_path: Path, kind: str) -> None:
        """Training draws from the same generators in between; the sampler's order doesn't depend on it."""
        self.check(tmp_path, sampler=lambda: DrawsAsItGoes(kind), batch_size=lambda: 4)

    @pytest.mark.parametrize("kind", ["python", "numpy", "torch"])
    def test_a_users_with_its_own_generator(self, tmp_path: Path, kind: str) -> None:
        """Its state is in the checkpoint: epoch 1 is not shuffled as epoch 0 was."""
        self.check(tmp_path, sampler=lambda: OwnsAGenerator(kind), batch_size=lambda: 4)

    def test_a_generator_given_to_the_loader(self, tmp_path: Path) -> None:
        self.check(
            tmp_path,
            shuffle=lambda: True,
            generator=lambda: torch.Generator().manual_seed(3),
            batch_size=lambda: 4,
        )

    def test_without_automatic_batching(self, tmp_path: Path) -> None:
        """batch_size=None: the sampler's items are the loader's."""

        def loader() -> DataLoader[Any]:
            return DataLoader(Batched(), batch_size=None, shuffle=True)

        assert_resumes_exactly(tmp_path, loader, (1, 3))

    @pytest.mark.parametrize("workers", [0, 2])
    def test_augmentation_from_python_and_numpy(self, tmp_path: Path, workers: int) -> None:
        def loader() -> DataLoader[Any]:
            return DataLoader(AugmentedByNumpy(), 4, shuffle=True, num_workers=workers)

        assert_resumes_exactly(tmp_path, loader, (3, 6))


class Batched(Dataset[Any]):
    """Its items are batches already."""

    def __init__(self) -> None:
        self.points = NoisyPoints()

    def __len__(self) -> int:
        return BATCHES

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        columns = zip(*[self.points[index * 4 + i] for i in range(4)], strict=True)
        return [torch.stack(column) for column in columns]


class CountsReads(NoisyPoints):
    reads: list[int]

    def __init__(self) -> None:
        super().__init__(noise=0.0)
        self.reads = []

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        self.reads.append(index)
        return super().__getitem__(index)


class TestTheWayToThePosition:
    def test_reads_no_sample(self, tmp_path: Path) -> None:
        """Resuming after 7 batches of 10 reads the samples of 3."""
        run(tmp_path, DataLoader(CountsReads(), 4, shuffle=True), kill_after=7)
        data = CountsReads()
        run(tmp_path, DataLoader(data, 4, shuffle=True), ckpt_path="last")
        assert len(data.reads) == 3 * 4

    def test_replays_an_iterable_that_has_no_state_and_says_so(self, tmp_path: Path) -> None:
        batches = list(DataLoader(NoisyPoints(), 4))
        whole, rows = run(tmp_path / "whole", batches)
        run(tmp_path / "killed", batches, kill_after=7)
        with pytest.warns(TreadleWarning, match=r"treadle\[replay\].*2 batches are read and dropped"):
            again, again_rows = run(tmp_path / "killed", batches, ckpt_path="last")
        assert same_weights(again, whole)
        assert again_rows == rows

    def test_asks_an_iterable_data_set_that_has_state(self, tmp_path: Path) -> None:
        """state_dict and load_state_dict of the data set carry its position."""

        def loader() -> DataLoader[Any]:
            return DataLoader(Counted(), batch_size=4)

        assert_resumes_exactly(tmp_path, loader, (2, 5, 7))

    def test_asks_it_between_epochs_too(self, tmp_path: Path) -> None:
        """A data set that orders each epoch differently by a count of its own."""

        def loader() -> DataLoader[Any]:
            return DataLoader(TurnedByEpoch(), batch_size=4)

        whole, rows = run(tmp_path / "whole", loader(), every="1 epoch")
        run(tmp_path / "killed", loader(), kill_after=7, every="1 epoch")
        again, again_rows = run(tmp_path / "killed", loader(), ckpt_path="last", every="1 epoch")
        assert whole.seen[0] != whole.seen[5]
        assert again.seen == whole.seen[5:]
        assert again_rows == rows


class Counted(IterableDataset[Any]):
    """An iterable that knows where it stands."""

    def __init__(self) -> None:
        self.points, self.position = NoisyPoints(), 0

    def __iter__(self) -> Iterator[Any]:
        while self.position < 20:
            self.position += 1
            yield self.points[self.position - 1]
        self.position = 0

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class TurnedByEpoch(IterableDataset[Any]):
    """An iterable that starts one sample later in each epoch."""

    def __init__(self) -> None:
        self.points, self.epoch, self.position = NoisyPoints(), 0, 0

    def __iter__(self) -> Iterator[Any]:
        while self.position < 20:
            self.position += 1
            yield self.points[(self.epoch + self.position) % 20]
        self.epoch, self.position = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]


class TestAFinishedRun:
    def test_does_nothing_when_resumed(self, tmp_path: Path) -> None:
        """Resumed by mistake, neither weights nor rows change."""
        whole, rows = run(tmp_path, TestKilledAfterAnyBatch.shuffled())
        again, again_rows = run(tmp_path, TestKilledAfterAnyBatch.shuffled(), ckpt_path="last")
        assert again.seen == []
        assert same_weights(again, whole)
        assert again_rows == rows

    def test_can_be_prolonged(self, tmp_path: Path) -> None:
        """2 epochs and 1 more equal 3."""
        loader = TestKilledAfterAnyBatch.shuffled
        whole, rows = run(tmp_path / "whole", loader(), max_epochs=3)
        run(tmp_path / "short", loader(), max_epochs=2)
        longer, longer_rows = run(tmp_path / "short", loader(), max_epochs=3, ckpt_path="last")
        assert same_weights(longer, whole)
        assert longer_rows == rows

    def test_that_ended_inside_an_epoch_can_be_prolonged(self, tmp_path: Path) -> None:
        """max_steps=7 is the middle of the second epoch; the rest follows without a seam."""
        loader = TestKilledAfterAnyBatch.shuffled
        whole, rows = run(tmp_path / "whole", loader())
        first, _ = run(tmp_path / "short", loader(), max_steps=7)
        longer, longer_rows = run(tmp_path / "short", loader(), ckpt_path="last")
        assert first.seen + longer.seen == whole.seen
        assert same_weights(longer, whole)
        assert longer_rows == rows

    def test_that_stopped_early_stays_stopped(self, tmp_path: Path) -> None:
        """And goes on when its patience was raised."""

        def stopping(patience: int) -> list[treadle.Callback]:
            return [EarlyStopping("val_loss", patience=patience, min_delta=10.0)]

        loader = TestKilledAfterAnyBatch.shuffled
        first, _ = run(tmp_path, loader(), max_epochs=9, callbacks=stopping(2))
        assert len(first.seen) == 3 * BATCHES
        stays, _ = run(tmp_path, loader(), max_epochs=9, callbacks=stopping(2), ckpt_path="last")
        assert stays.seen == []
        goes_on, _ = run(tmp_path, loader(), max_epochs=9, callbacks=stopping(4), ckpt_path="last")
        assert len(goes_on.seen) == 2 * BATCHES


class TestAnOlderCheckpoint:
    def test_branches_off_into_a_folder_of_its_own(self, tmp_path: Path) -> None:
        """The run it comes from keeps its rows and files."""
        loader = TestKilledAfterAnyBatch.shuffled
        checkpoints = tmp_path / "runs/version_0/checkpoints"
        _, rows = run(tmp_path, loader(), save_top_k=-1, every="1 epoch")
        files = sorted(path.name for path in checkpoints.iterdir())
        run(tmp_path, loader(), ckpt_path=str(checkpoints / "epoch=0-step=5.ckpt"), max_epochs=3)
        assert (tmp_path / "runs/version_0/metrics.csv").read_text() == rows
        assert sorted(path.name for path in checkpoints.iterdir()) == files
        assert (tmp_path / "runs/version_1/metrics.csv").read_text().count("\n") > 10


class TestARunKilledWhileItSaved:
    def test_is_tidied_when_it_goes_on(self, tmp_path: Path) -> None:
        """What the killed process had half written, or was about to remove, is gone in the end."""
        loader = TestKilledAfterAnyBatch.shuffled
        checkpoints = tmp_path / "runs/version_0/checkpoints"
        run(tmp_path, loader(), kill_after=7)
        displaced = torch.load(checkpoints / "last.ckpt", weights_only=True)["callbacks"]
        (name,) = next(state["displaced"] for key, state in displaced.items() if key.startswith("ModelCheckpoint"))
        (checkpoints / name).write_bytes(b"displaced, and not removed yet")
        (checkpoints / ".last.ckpt.123.partial").write_bytes(b"half")
        run(tmp_path, loader(), ckpt_path="last")
        kept = sorted(path.name for path in checkpoints.iterdir())
        assert kept == ["epoch=1-step=10.ckpt", "exception.ckpt", "last.ckpt", "previous.ckpt"]

    def test_touches_nothing_that_a_strangers_checkpoint_names_outside_the_folder(self, tmp_path: Path) -> None:
        loader = TestKilledAfterAnyBatch.shuffled
        run(tmp_path, loader(), kill_after=3)
        outside = tmp_path / "precious.ckpt"
        outside.write_text("mine")
        last = tmp_path / "runs/version_0/checkpoints/last.ckpt"
        state = torch.load(last, weights_only=True)
        for callback in state["callbacks"].values():
            if "displaced" in callback:
                callback.update(displaced=["../../../precious.ckpt"], kept={"../../../precious.ckpt": None})
        torch.save(state, last)
        run(tmp_path, loader(), ckpt_path="last")
        assert outside.read_text() == "mine"


class Slower(Classifier):
    def __init__(self, hidden: int = 4, learning_rate: float = 0.01) -> None:
        super().__init__(hidden, learning_rate)


class TestOtherSettingsThanTheSavedOnes:
    def test_are_named(self, tmp_path: Path) -> None:
        """The saved optimizer state wins, and nobody has to find that out by a plot."""
        loader = TestKilledAfterAnyBatch.shuffled
        run(tmp_path, loader(), kill_after=7)
        with pytest.warns(TreadleWarning, match=r"treadle\[changed\].*learning_rate was 0.05, is 0.01"):
            run(tmp_path, loader(), ckpt_path="last", module=Slower)


class TestATrainerThatFitsTwice:
    def test_gives_each_run_a_folder_of_its_own(self, tmp_path: Path) -> None:
        """As in cross validation: no row and no file of the first is touched by the second."""
        trainer = treadle.Trainer(default_root_dir=tmp_path, max_epochs=1, log_every_n_steps=1)
        loader = TestKilledAfterAnyBatch.shuffled
        trainer.fit(Classifier(), loader())
        first = {path: path.read_bytes() for path in (tmp_path / "runs/version_0").rglob("*") if path.is_file()}
        trainer.fit(Classifier(), loader())
        assert {path: path.read_bytes() for path in first} == first
        assert (tmp_path / "runs/version_1/checkpoints/last.ckpt").is_file()
        assert (tmp_path / "runs/version_1/metrics.csv").read_text().count("\n") == 1 + BATCHES + 1


class WithASchedule(Classifier):
    """Halves its learning rate with each epoch."""

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]


class TestASchedulerOfEpochs:
    def test_goes_on_from_any_batch(self, tmp_path: Path) -> None:
        """After an epoch's last batch too, where it steps before the optimizer does: without a warning of torch's."""
        shuffled = TestKilledAfterAnyBatch.shuffled
        assert_resumes_exactly(tmp_path, shuffled, TestKilledAfterAnyBatch.KILLS, module=WithASchedule)


class FollowsTheStep(Classifier):
    """A learning rate that follows the loss of the step, stepped at each epoch's end."""

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "train_loss_step"}}


class TestTheValueOfAStep:
    def test_is_there_after_its_row_was_written(self, tmp_path: Path) -> None:
        """Killed after an epoch's last batch, what follows the value at the epoch's end still finds it."""
        shuffled = TestKilledAfterAnyBatch.shuffled
        assert_resumes_exactly(tmp_path, shuffled, TestKilledAfterAnyBatch.KILLS, module=FollowsTheStep)


class ShufflesItsValidation(Classifier):
    """Validates on a random half, drawn when the loader is made and in each pass from a generator that it owns."""

    def val_dataloader(self) -> DataLoader[Any]:
        indices = torch.randperm(20)[:10].tolist()
        generator = torch.Generator().manual_seed(1)
        return DataLoader(Subset(NoisyPoints(), indices), 4, shuffle=True, generator=generator)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:  # of the first batch only, so that the order tells
            super().validation_step(batch, batch_idx)


class TestTheValidationData:
    def test_are_those_of_the_run_that_never_stopped(self, tmp_path: Path) -> None:
        """Generators that its loader owns, and what was drawn when it was made, are state too."""
        shuffled = TestKilledAfterAnyBatch.shuffled
        assert_resumes_exactly(
            tmp_path, shuffled, TestKilledAfterAnyBatch.KILLS, module=ShufflesItsValidation, own_validation=True
        )


class TestALoaderThatIsAskedForAgain:
    def test_draws_the_same_inside_its_epoch(self, tmp_path: Path, make_bare: Any) -> None:
        """reload_dataloaders_every_n_epochs, and a random subset of the data each time."""

        class Draws(Classifier):
            def train_dataloader(self) -> DataLoader[Any]:
                return DataLoader(Subset(NoisyPoints(), torch.randperm(20)[:12].tolist()), 4, shuffle=True)

        class Stops(treadle.Callback):
            def on_savepoint(self, trainer: Any, module: Any, final: bool) -> None:
                if trainer.progress.batches == 5:  # of three batches an epoch
                    trainer.save_checkpoint(tmp_path / "here.ckpt")
                    raise KeyboardInterrupt

        settings = {"max_epochs": 3, "reload_dataloaders_every_n_epochs": 1}
        treadle.seed_everything(1)
        whole = Draws()
        make_bare(**settings).fit(whole)
        treadle.seed_everything(1)
        with pytest.raises(KeyboardInterrupt):
            make_bare(callbacks=Stops(), **settings).fit(Draws())
        resumed = Draws()
        make_bare(**settings).fit(resumed, ckpt_path=tmp_path / "here.ckpt")
        assert resumed.seen == whole.seen[5:]
        assert same_weights(resumed, whole)
