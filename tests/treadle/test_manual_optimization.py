"""Modules that step their optimizers themselves: nothing that the Trainer offers stops working there."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import treadle
from treadle.errors import ModuleError
from treadle.testing import MemoryLogger

BATCHES = [torch.tensor([float(n)]) for n in range(1, 7)]


class TwoWeights(treadle.Module):
    """Two weights with an optimizer each; the gradient of both is the batch's mean. ``how`` is the order of calls."""

    automatic_optimization = False

    def __init__(self, how: str = "zero first", skip_second: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
        self.how, self.skip_second = how, skip_second
        self.seen: list[tuple[int, float]] = []
        self.steps_seen: list[int] = []

    def training_step(self, batch: Tensor) -> None:
        first, second = self.optimizers()
        self.one(first, self.first * batch.mean())
        if not self.skip_second:
            self.one(second, self.second * batch.mean())
        self.steps_seen.append(self.global_step)

    def one(self, optimizer: Any, loss: Tensor) -> None:
        match self.how:
            case "zero first":
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
            case "zero last":
                self.manual_backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            case "toggled":
                with optimizer.toggle_model():
                    optimizer.zero_grad()
                    self.manual_backward(loss)
                    optimizer.step()
            case _:
                optimizer.step(loss)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        for number, parameter in enumerate((self.first, self.second)):
            if any(parameter is p for group in optimizer.param_groups for p in group["params"]):
                assert parameter.grad is not None
                self.seen.append((number, float(parameter.grad)))

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD([self.first], lr=0.1), torch.optim.SGD([self.second], lr=0.1)]


WAYS = ["zero first", "zero last", "toggled", "step(loss)"]


class WithoutLength:
    def __iter__(self) -> Iterator[Tensor]:
        return iter(BATCHES[:5])


@pytest.mark.parametrize("how", WAYS)
class TestEachOrderOfCalls:
    def test_steps_with_each_batchs_gradient(self, make_bare: Any, how: str) -> None:
        model = TwoWeights(how)
        make_bare().fit(model, BATCHES[:3])
        assert model.seen == [(0, 1.0), (1, 1.0), (0, 2.0), (1, 2.0), (0, 3.0), (1, 3.0)]
        assert float(model.first.detach()) == pytest.approx(-0.6)

    def test_accumulates_as_the_trainer_says(self, make_bare: Any, how: str) -> None:
        """accumulate_grad_batches=4 over six batches: the means of four and of two, and a step for each window."""
        model = TwoWeights(how)
        trainer = make_bare(accumulate_grad_batches=4)
        trainer.fit(model, BATCHES)
        assert model.seen == [(0, 2.5), (1, 2.5), (0, 5.5), (1, 5.5)]
        assert trainer.global_step == 2

    def test_accumulates_without_knowing_the_length(self, make_bare: Any, how: str) -> None:
        """The last window ends with the data: it steps on the two batches that it has."""
        model = TwoWeights(how)
        make_bare(accumulate_grad_batches=3).fit(model, WithoutLength())
        assert model.seen == [(0, 2.0), (1, 2.0), (0, 4.5), (1, 4.5)]

    def test_clips_as_the_trainer_says(self, make_bare: Any, how: str) -> None:
        """Each optimizer's own gradients, before its step; the weight moves by the bound."""
        model = TwoWeights(how)
        make_bare(gradient_clip_val=0.5).fit(model, BATCHES[:2])
        assert float(model.first.detach()) == pytest.approx(-0.1)


class TestTheGlobalStep:
    def test_counts_batches_that_updated_however_many_optimizers_stepped(self, make_bare: Any) -> None:
        """max_steps=4 trains on four batches; each optimizer has its own count."""
        model = TwoWeights()
        trainer = make_bare(max_steps=4, max_epochs=None)
        trainer.fit(model, BATCHES)
        assert (trainer.global_step, trainer.optimizer_steps) == (4, [4, 4])
        assert model.steps_seen == [0, 1, 2, 3]

    def test_is_the_same_when_one_optimizer_pauses(self, make_bare: Any) -> None:
        trainer = make_bare()
        trainer.fit(TwoWeights(skip_second=True), BATCHES[:3])
        assert (trainer.global_step, trainer.optimizer_steps) == (3, [3, 0])

    def test_does_not_count_a_batch_without_a_step(self, make_bare: Any) -> None:
        class Rarely(TwoWeights):
            def training_step(self, batch: Tensor) -> None:
                if float(batch) % 2 == 0:
                    self.one(self.optimizers()[0], self.first * batch.mean())

        trainer = make_bare()
        trainer.fit(Rarely(), BATCHES)
        assert trainer.global_step == 3


class TestTheUnitOfOneStep:
    def test_leaves_the_other_optimizers_gradients_alone(self, make_bare: Any) -> None:
        """A loss that depends on both weights moves only those of the optimizer it is given to."""

        class Adversaries(TwoWeights):
            def training_step(self, batch: Tensor) -> None:
                first, second = self.optimizers()
                first.step((self.first + self.second) * batch.mean())
                assert self.second.grad is None or float(batch) == 2.0  # its own of the batch before
                second.step((self.second - self.first) * batch.mean())

        model = Adversaries("step(loss)")
        make_bare(accumulate_grad_batches=2).fit(model, BATCHES[:2])
        assert model.seen == [(0, 1.5), (1, 1.5)]

    def test_steps_its_optimizers_schedulers(self, make_bare: Any) -> None:
        """Those that count steps, and of this optimizer only."""

        class Scheduled(TwoWeights):
            def configure_optimizers(self) -> Any:
                first, second = super().configure_optimizers()
                schedule = torch.optim.lr_scheduler.LambdaLR(first, lambda step: 1 / (step + 1))
                return [first, second], [{"scheduler": schedule, "interval": "step"}]

        model = Scheduled("step(loss)")
        trainer = make_bare()
        trainer.fit(model, BATCHES[:3])
        assert [o.param_groups[0]["lr"] for o in trainer.optimizers] == [pytest.approx(0.025), 0.1]

    def test_is_only_there_in_manual_optimization(self, make_bare: Any) -> None:
        class Automatic(TwoWeights):
            automatic_optimization = True

            def training_step(self, batch: Tensor) -> Tensor:
                self.optimizers().step(self.first * 1.0)
                return self.first * 1.0

            def configure_optimizers(self) -> Any:
                return torch.optim.SGD([self.first], lr=0.1)

        with pytest.raises(ModuleError, match=r"optimizer\.step\(loss\) in automatic optimization"):
            make_bare().fit(Automatic(), BATCHES)


class TestTheOptimizersOfAModule:
    def test_look_like_torchs(self, make_bare: Any) -> None:
        """isinstance, param_groups and state are those of the optimizer itself."""
        found = []

        class Looks(TwoWeights):
            def training_step(self, batch: Tensor) -> None:
                first, _ = self.optimizers()
                found.append((isinstance(first, torch.optim.SGD), first.param_groups[0]["lr"], first.optimizer))
                found.append(self.optimizers(False)[0])

        trainer = make_bare()
        with pytest.warns(treadle.errors.TreadleWarning, match="training_step calls step"):
            trainer.fit(Looks(), BATCHES[:1])
        assert found == [(True, 0.1, trainer.optimizers[0]), trainer.optimizers[0]]

    def test_are_one_where_there_is_one(self, make_bare: Any) -> None:
        class One(TwoWeights):
            def training_step(self, batch: Tensor) -> None:
                optimizer = self.optimizers()
                optimizer.step(self.first * batch.mean())

            def configure_optimizers(self) -> Any:
                return torch.optim.SGD([self.first], lr=0.1)

        model = One("step(loss)")
        make_bare().fit(model, BATCHES[:2])
        assert model.seen == [(0, 1.0), (0, 2.0)]

    def test_have_their_schedulers(self, make_bare: Any) -> None:
        """None without any; one; else a list. The user steps them."""

        class Scheduled(TwoWeights):
            def configure_optimizers(self) -> Any:
                first, second = super().configure_optimizers()
                return [first, second], [torch.optim.lr_scheduler.StepLR(first, 1, gamma=0.5)]

            def on_train_epoch_end(self) -> None:
                assert self.lr_schedulers() is self.trainer.lr_scheduler_configs[0].scheduler
                self.lr_schedulers().step()

        trainer = make_bare(max_epochs=2)
        trainer.fit(Scheduled(), BATCHES)
        assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.025)


class TestToggling:
    def test_freezes_the_other_optimizers_parameters_and_gives_back_what_was(self, make_bare: Any) -> None:
        seen = []

        class Toggles(TwoWeights):
            def training_step(self, batch: Tensor) -> None:
                first, second = self.optimizers()
                self.second.requires_grad_(False)
                with self.toggled_optimizer(second):
                    seen.append((self.first.requires_grad, self.second.requires_grad))
                seen.append((self.first.requires_grad, self.second.requires_grad))
                self.toggle_optimizer(first)
                seen.append((self.first.requires_grad, self.second.requires_grad))
                self.untoggle_optimizer(first)
                self.one(first, self.first * batch.mean())

        make_bare().fit(Toggles(), BATCHES[:1])
        assert seen == [(False, False), (True, False), (True, False)]

    def test_is_undone_by_an_error(self, make_bare: Any) -> None:
        class Breaks(TwoWeights):
            def training_step(self, batch: Tensor) -> None:
                with self.optimizers()[0].toggle_model():
                    raise RuntimeError("here")

        model = Breaks()
        with pytest.raises(RuntimeError, match="here"):
            make_bare().fit(model, BATCHES)
        assert model.second.requires_grad


class TestAClosure:
    def test_is_evaluated_by_the_optimizer(self, make_bare: Any) -> None:
        """LBFGS asks for the loss as often as it likes; one step of the run."""

        class Lbfgs(TwoWeights):
            def training_step(self, batch: Tensor) -> None:
                optimizer = self.optimizers()

                def closure() -> Tensor:
                    optimizer.zero_grad()
                    loss = (self.first - batch.mean()) ** 2
                    self.manual_backward(loss)
                    return loss

                optimizer.step(closure)

            def configure_optimizers(self) -> Any:
                return torch.optim.LBFGS([self.first], lr=1.0)

        model = Lbfgs()
        trainer = make_bare()
        trainer.fit(model, [torch.tensor([3.0])])
        assert float(model.first.detach()) == pytest.approx(3.0, abs=1e-4)
        assert trainer.global_step == 1


class TestStoppedAndResumed:
    @pytest.mark.parametrize("how", WAYS)
    @pytest.mark.parametrize("stop", [1, 2, 4])
    def test_goes_on_bit_for_bit(self, tmp_path: Path, how: str, stop: int) -> None:
        """Inside an accumulation window too: gradients that no step has used are state."""

        class Momentum(TwoWeights):
            def configure_optimizers(self) -> Any:
                return [torch.optim.Adam([self.first], lr=0.1), torch.optim.SGD([self.second], lr=0.1, momentum=0.9)]

        class Stops(treadle.Callback):
            def on_savepoint(self, trainer: Any, module: Any, final: bool) -> None:
                trainer.save_checkpoint(tmp_path / "here.ckpt")
                if trainer.progress.batches == stop:
                    raise KeyboardInterrupt

        def fit(callbacks: Any, **settings: Any) -> TwoWeights:
            model = Momentum(how)
            bare = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
            trainer = treadle.Trainer(max_epochs=1, accumulate_grad_batches=3, callbacks=callbacks, **bare)
            trainer.fit(model, DataLoader(BATCHES, batch_size=None), **settings)  # type: ignore[arg-type]
            return model

        whole = fit(None)
        with pytest.raises(KeyboardInterrupt):
            fit(Stops())
        resumed = fit(None, ckpt_path=tmp_path / "here.ckpt")
        assert torch.equal(whole.first, resumed.first)
        assert torch.equal(whole.second, resumed.second)

    def test_with_an_accumulation_of_the_users_own(self, tmp_path: Path) -> None:
        """A module that steps in every third batch, without telling the Trainer."""

        class Own(TwoWeights):
            def training_step(self, batch: Tensor, batch_idx: int) -> None:
                first, _ = self.optimizers()
                self.manual_backward(self.first * batch.mean())
                if (batch_idx + 1) % 3 == 0:
                    first.step()
                    first.zero_grad()

            def validation_step(self, batch: Tensor) -> None: ...

        class Stops(treadle.Callback):
            def on_savepoint(self, trainer: Any, module: Any, final: bool) -> None:
                if trainer.progress.batches == 2:
                    trainer.save_checkpoint(tmp_path / "here.ckpt")
                    raise KeyboardInterrupt

        def fit(callbacks: Any, **settings: Any) -> TwoWeights:
            model = Own()
            bare = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
            trainer = treadle.Trainer(max_epochs=1, val_check_interval=1, callbacks=callbacks, **bare)
            trainer.fit(model, DataLoader(BATCHES, batch_size=None), BATCHES[:1], **settings)  # type: ignore[arg-type]
            return model

        whole = fit(None)
        assert whole.seen == [(0, 6.0), (0, 15.0)]
        with pytest.raises(KeyboardInterrupt):
            fit(Stops())
        assert torch.equal(whole.first, fit(None, ckpt_path=tmp_path / "here.ckpt").first)


class TestLogging:
    def test_is_the_same_as_in_automatic_optimization(self, make_bare: Any) -> None:
        class Logs(TwoWeights):
            def training_step(self, batch: Tensor) -> None:
                self.one(self.optimizers()[0], self.first * batch.mean())
                self.log("mean", batch.mean())

        logger = MemoryLogger()
        make_bare(logger=logger, log_every_n_steps=2).fit(Logs(), BATCHES)
        assert [(row["step"], row["mean"]) for row in logger.rows] == [(1, 2.0), (3, 4.0), (5, 6.0)]


class TestMistakes:
    def test_several_optimizers_without_saying_so(self, make_bare: Any) -> None:
        class Forgot(TwoWeights):
            automatic_optimization = True

        with pytest.raises(ModuleError, match="returned 2 optimizers") as error:
            make_bare().fit(Forgot(), BATCHES)
        assert "automatic_optimization = False" in error.value.fix

    def test_a_manual_backward_in_automatic_optimization(self, make_bare: Any) -> None:
        class Confused(treadle.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.zeros(()))

            def training_step(self, batch: Tensor) -> Tensor:
                self.manual_backward(self.weight * 1.0)
                return self.weight * 1.0

            def configure_optimizers(self) -> Any:
                return torch.optim.SGD(self.parameters(), lr=0.1)

        with pytest.raises(ModuleError, match="manual_backward was called in automatic optimization"):
            make_bare().fit(Confused(), BATCHES)

    def test_no_step_in_a_whole_epoch_is_told(self, make_bare: Callable[..., treadle.Trainer]) -> None:
        class Forgets(TwoWeights):
            def training_step(self, batch: Tensor) -> None:
                self.manual_backward(self.first * batch.mean())

        with pytest.warns(treadle.errors.TreadleWarning, match="in manual optimization, training_step calls step"):
            make_bare().fit(Forgets(), BATCHES)
