"""Eleven results that are wrong in the library most users come from, and right here: one class for each.

Every class says what that library gives (pytorch-lightning 2.6.6); ``benchmarks/wrong_results.py`` runs both.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from torchmetrics import MeanMetric

import treadle
from treadle.callbacks import ModelCheckpoint
from treadle.errors import DataError, TreadleWarning
from treadle.testing import MemoryLogger


class Weight(treadle.Module):
    """One weight that every batch pulls down by 1. ``seen`` lists the samples it was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[float] = []

    def training_step(self, batch: Tensor) -> Tensor:
        self.seen += batch.tolist()
        return self.weight * 1.0

    def evaluation_step(self, batch: Tensor) -> None:
        self.log("weight", self.weight)

    validation_step = test_step = evaluation_step

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1.0)


def numbers(count: int = 8, batch_size: int = 1, **options: Any) -> DataLoader[Any]:
    """The samples 0.0, 1.0, 2.0 and so on."""
    return DataLoader(torch.arange(float(count)), batch_size, **options)  # type: ignore[arg-type]


class Killed(BaseException):
    """Stands for SIGKILL: no handler of the Trainer may save anything on it."""


class KillAfter(treadle.Callback):
    def __init__(self, batches: int) -> None:
        self.batches = batches

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.batches:
            raise Killed


def killed_and_resumed(
    make_trainer: Callable[..., treadle.Trainer], module: Callable[[], Any], loader: Callable[[], Any], after: int = 5
) -> tuple[treadle.Trainer, Any]:
    """Train for an epoch in two processes, the first of which dies inside it. Returns those of the second."""
    first = make_trainer(callbacks=[KillAfter(after), ModelCheckpoint(every="1 step")])
    with suppress(Killed):
        first.fit(module(), loader())
    second, resumed = make_trainer(callbacks=ModelCheckpoint(every="1 step")), module()
    second.fit(resumed, loader(), ckpt_path="last")
    return second, resumed


class TestTheLastCheckpoint:
    """1. There: written only when a top-k save happens. After 4 epochs without improvement it holds epoch 0."""

    class Worse(Weight):
        """Each epoch's result is worse than the one before."""

        def validation_step(self, batch: Tensor) -> None:
            self.log("val_loss", float(self.current_epoch))

    def test_is_the_newest_state(self, make_trainer: Any) -> None:
        """Resumed after 5 epochs, a sixth is trained; there it would be five."""
        settings: dict[str, Any] = {"monitor": "val_loss", "save_last": True}
        make_trainer(callbacks=ModelCheckpoint(**settings), max_epochs=5).fit(self.Worse(), numbers(2), numbers(2))
        model = self.Worse()
        make_trainer(callbacks=ModelCheckpoint(**settings), max_epochs=6).fit(
            model, numbers(2), numbers(2), ckpt_path="last"
        )
        assert model.seen == [0.0, 1.0]
        assert model.weight.item() == -12.0


class TestRandomNumbers:
    """2. There: not in checkpoints. A run resumed each epoch replays epoch 0's shuffle order for ever."""

    class Draws(Weight):
        """``drawn`` lists a number from each generator for each batch."""

        def __init__(self) -> None:
            super().__init__()
            self.drawn: list[tuple[float, float, float]] = []

        def training_step(self, batch: Tensor) -> Tensor:
            self.drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
            return super().training_step(batch)

    def fitted(self, trainer: treadle.Trainer, ckpt_path: str | None = None) -> Draws:
        """As by a script that begins with its seed, as scripts do."""
        treadle.seed_everything(7)
        model = self.Draws()
        trainer.fit(model, numbers(batch_size=4, shuffle=True), ckpt_path=ckpt_path)
        return model

    def resumed_each_epoch(self, make_trainer: Any) -> list[Draws]:
        """Three epochs, each in a process of its own."""
        return [self.fitted(make_trainer(max_epochs=epoch), ckpt_path="auto") for epoch in (1, 2, 3)]

    def test_shuffle_epochs_of_many_processes_as_those_of_one(self, make_trainer: Any, make_bare: Any) -> None:
        """There, all three processes see the samples in the same order."""
        first, second, third = self.resumed_each_epoch(make_trainer)
        assert first.seen + second.seen + third.seen == self.fitted(make_bare(max_epochs=3)).seen
        assert first.seen != second.seen != third.seen

    def test_go_on_where_they_stood(self, make_trainer: Any, make_bare: Any) -> None:
        """Python's, numpy's and torch's. There, each process draws the numbers of the first one again."""
        first, second, third = self.resumed_each_epoch(make_trainer)
        assert first.drawn + second.drawn + third.drawn == self.fitted(make_bare(max_epochs=3)).drawn


class TestTheRestOfAnEpoch:
    """3. There: the loader restarts. After 5 of 8 samples, it sees 0, 1, 2 where 5, 6, 7 are left."""

    def test_is_what_is_left_of_it(self, make_trainer: Any) -> None:
        _, model = killed_and_resumed(make_trainer, Weight, numbers)
        assert model.seen == [5.0, 6.0, 7.0]

    def test_is_known_to_an_iterable_that_keeps_its_position(self, make_trainer: Any) -> None:
        """A loader of any kind with state_dict and load_state_dict. There, 5 is left out: a batch is read ahead, and the
        position behind it is saved."""

        class Reader:
            def __init__(self) -> None:
                self.position = 0

            def __iter__(self) -> Iterator[Tensor]:
                while self.position < 8:
                    self.position += 1
                    yield torch.tensor([self.position - 1.0])
                self.position = 0

            def state_dict(self) -> dict[str, int]:
                return {"position": self.position}

            def load_state_dict(self, state: dict[str, int]) -> None:
                self.position = state["position"]

        _, model = killed_and_resumed(make_trainer, Weight, Reader)
        assert model.seen == [5.0, 6.0, 7.0]


class TestAShortAccumulationWindow:
    """4. There: 8 batches of gradient 1.0 by threes step with 1.0, 1.0 and 0.667."""

    @pytest.mark.parametrize("count, limit", [(8, 1.0), (99, 8)], ids=["of the loader", "of a limit"])
    def test_is_divided_by_its_own_length(self, make_bare: Any, count: int, limit: float) -> None:
        """Three steps of 1.0 lead to -3; there to -2.667."""
        model = Weight()
        make_bare(accumulate_grad_batches=3, limit_train_batches=limit).fit(model, numbers(count))
        assert model.weight.item() == -3.0


class TestMetricsOfAnEpochThatWasInterrupted:
    """5. There: they restart. The mean of 0 to 7, resumed after five of them, is 1.0 where 3.5 is right."""

    @pytest.mark.parametrize("how, right", [("mean", 3.5), ("sum", 28.0), ("min", 0.0), ("max", 7.0)])
    def test_are_of_all_its_batches(self, make_trainer: Any, how: Any, right: float) -> None:
        """The extremes are the last two before the kill: neither a metric nor a loader that restarts comes by them."""

        class Logs(Weight):
            def training_step(self, batch: Tensor) -> Tensor:
                self.log("number", batch, on_step=False, on_epoch=True, reduce_fx=how)
                return super().training_step(batch)

        order = [1, 2, 3, 0, 7, 4, 5, 6]
        trainer, _ = killed_and_resumed(make_trainer, Logs, lambda: numbers(sampler=order))
        assert trainer.callback_metrics["number"].item() == right

    def test_are_so_for_metric_objects_too(self, make_trainer: Any) -> None:
        """What a torchmetrics object has gathered is no weight of the module, and there nobody keeps it."""

        class Logs(Weight):
            def __init__(self) -> None:
                super().__init__()
                self.mean = MeanMetric()

            def training_step(self, batch: Tensor) -> Tensor:
                self.mean.update(batch)
                self.log("number", self.mean, on_step=False, on_epoch=True)
                return super().training_step(batch)

        trainer, _ = killed_and_resumed(make_trainer, Logs, numbers)
        assert trainer.callback_metrics["number"].item() == 3.5


class TestTheRowOfAnEvaluatedCheckpoint:
    """6. There: validate(ckpt_path=...) and test(ckpt_path=...) log at step 0, epoch 0."""

    @pytest.mark.parametrize("verb", ["validate", "test"])
    @pytest.mark.parametrize(
        "settings, step, weight", [({"max_steps": 3, "val_check_interval": 1}, 2, -3.0), ({}, 3, -4.0)]
    )
    def test_is_at_the_step_and_epoch_of_the_checkpoint(
        self, make_trainer: Any, verb: str, settings: dict[str, Any], step: int, weight: float
    ) -> None:
        """It is the row that the fit itself wrote, validating the same state: inside epoch 1, and at its end."""
        fitted, evaluated = MemoryLogger(), MemoryLogger()
        trainer = make_trainer(logger=fitted, max_epochs=2, **settings)
        trainer.fit(Weight(), numbers(2), numbers(2))
        path = trainer.checkpoint_callback.last_model_path
        getattr(make_trainer(logger=evaluated), verb)(Weight(), numbers(2), ckpt_path=path, verbose=False)
        assert evaluated.rows == [fitted.rows[-1]] == [{"step": step, "epoch": 1, "weight": weight}]


class TestSavingTheLastCheckpointToo:
    """7. There: save_last=True collects and serialises everything a second time."""

    def test_collects_the_state_once(self, make_trainer: Any) -> None:
        """Three epochs are three times on_save_checkpoint; there six."""
        collected = []

        class Counts(Weight):
            def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
                collected.append(checkpoint["global_step"])

        trainer = make_trainer(callbacks=ModelCheckpoint(save_last=True), max_epochs=3)
        trainer.fit(Counts(), numbers(2))
        assert collected == [2, 4, 6]

    def test_writes_it_once(self, make_trainer: Any) -> None:
        """Three kept files, last.ckpt and previous.ckpt are three files on the disk; there four without the latter."""
        trainer = make_trainer(callbacks=ModelCheckpoint(save_last=True, save_top_k=-1), max_epochs=3)
        trainer.fit(Weight(), numbers(2))
        paths = list(Path(trainer.checkpoint_callback.last_model_path).parent.iterdir())
        assert (len(paths), len({path.stat().st_ino for path in paths})) == (5, 3)


class Pair(treadle.Module):
    """Two weights with an optimizer each, which step in every so many batches."""

    def __init__(self, *every: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.every, self.batches = every, 0
        self.weights = nn.ParameterList([nn.Parameter(torch.zeros(())) for _ in every])

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        self.batches += 1
        self.log("batch", float(batch_idx))
        for weight, optimizer, every in zip(self.weights, self.optimizers(), self.every, strict=True):
            if batch_idx % every == 0:
                optimizer.zero_grad()
                self.manual_backward(weight * 1.0)
                optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD([weight], lr=1.0) for weight in self.weights]


class TestStepsOfTwoOptimizers:
    """8. There: global_step counts every optimizer.step(). max_steps=8 over 8 batches stops after 4."""

    def test_in_one_batch_are_one_step(self, make_bare: Any) -> None:
        model, trainer = Pair(1, 1), make_bare(max_steps=8)
        trainer.fit(model, numbers(8))
        assert (model.batches, trainer.global_step) == (8, 8)
        assert [weight.item() for weight in model.weights] == [-8.0, -8.0]

    def test_are_counted_for_each_beside_it(self, make_bare: Any) -> None:
        """One steps in every second batch, the other in every fourth: 4 training steps, at which rows are written. There
        global_step is 6."""
        logger = MemoryLogger()
        trainer = make_bare(logger=logger, log_every_n_steps=1)
        trainer.fit(Pair(2, 4), numbers(8))
        assert (trainer.global_step, trainer.optimizer_steps) == (4, [4, 2])
        assert [(row["step"], row["batch"]) for row in logger.rows] == [(0, 0.0), (1, 2.0), (2, 4.0), (3, 6.0)]

    def test_are_counted_on_after_a_restart(self, make_trainer: Any) -> None:
        trainer, _ = killed_and_resumed(make_trainer, lambda: Pair(2, 4), numbers)
        assert (trainer.global_step, trainer.optimizer_steps) == (4, [4, 2])


def temperature_first(samples: list[Tensor]) -> dict[str, Tensor]:
    """The first tensor is one number for the whole batch."""
    return {"temperature": torch.tensor(0.7), "value": torch.stack(samples)}


def time_first(samples: list[Tensor]) -> dict[str, Tensor]:
    """The first tensor is of shape (time, batch)."""
    return {"tokens": torch.zeros(3, len(samples)), "value": torch.stack(samples)}


class TestTheWeightOfABatch:
    """9. There: guessed from the first tensor found. The mean of 0 to 4, in batches of 4 and 1, is 2.75 for 2.0."""

    class Means(Weight):
        size: int | None = None

        def validation_step(self, batch: Any) -> None:
            self.log("mean", batch["value"].mean(), batch_size=self.size and len(batch["value"]))

    @pytest.mark.parametrize("collate", [temperature_first, time_first])
    def test_is_how_many_samples_the_loader_put_into_it(self, make_bare: Any, collate: Any) -> None:
        loader = numbers(5, batch_size=4, collate_fn=collate)
        assert make_bare().validate(self.Means(), loader, verbose=False) == [{"mean": 2.0}]

    def test_is_asked_for_where_nothing_can_tell(self, make_bare: Any) -> None:
        """An iterable data set, whose last batch may be of any size; there the guess goes on without a word. Typing what
        the error says gives the right mean."""

        class Endless(IterableDataset[Tensor]):
            def __iter__(self) -> Iterator[Tensor]:
                return iter(torch.arange(5.0))

        loader = DataLoader(Endless(), batch_size=4, collate_fn=time_first)
        with pytest.raises(DataError, match="size of a batch is not known") as error:
            make_bare().validate(self.Means(), loader, verbose=False)
        assert "batch_size=..." in error.value.fix
        told = self.Means()
        told.size = 1
        assert make_bare().validate(told, loader, verbose=False) == [{"mean": 2.0}]


class Scale:
    """An object of the user's own."""


class WithAnObject(Weight):
    def __init__(self, scale: Scale) -> None:
        super().__init__()
        self.save_hyperparameters()


@pytest.mark.filterwarnings(r"ignore:treadle\[hparams\]")
class TestAnObjectAmongTheHyperparameters:
    """10. There: the checkpoint can't be read any more on torch >= 2.6 (UnpicklingError)."""

    @pytest.fixture
    def path(self, make_trainer: Any) -> str:
        trainer = make_trainer()
        with pytest.warns(TreadleWarning, match=r"treadle\[hparams\].*not saved: scale"):
            trainer.fit(WithAnObject(Scale()), numbers(3))
        return str(trainer.checkpoint_callback.last_model_path)

    def test_is_given_when_loading(self, path: str) -> None:
        scale = Scale()
        loaded = WithAnObject.load_from_checkpoint(path, scale=scale)
        assert loaded.weight.item() == -3.0
        assert loaded.hparams.scale is scale

    def test_is_no_obstacle_to_going_on(self, make_trainer: Any, path: str) -> None:
        """A resumed run has its module already, and needs nothing more."""
        model = WithAnObject(Scale())
        make_trainer(max_epochs=2).fit(model, numbers(3), ckpt_path=path)
        assert model.weight.item() == -6.0


class TestTheOrderOfTheUsersLoader:
    """11. There: under DDP a training loader with shuffle=False is shuffled without a word.

    Several processes are not in this release; that the order is the user's holds in one already.
    """

    @pytest.mark.parametrize(
        "options",
        [{"shuffle": False}, {"sampler": [5, 3, 0, 7, 1, 6]}, {"shuffle": False, "num_workers": 2}],
        ids=["not shuffled", "a sampler's own", "from workers"],
    )
    def test_is_that_of_a_plain_loop_in_every_epoch(self, make_bare: Any, options: dict[str, Any]) -> None:
        model, loader = Weight(), numbers(8, batch_size=2, **options)
        make_bare(max_epochs=2).fit(model, loader)
        assert model.seen == [sample.item() for _ in range(2) for batch in loader for sample in batch]
