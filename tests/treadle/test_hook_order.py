"""The order in which everything is called, as lists: callbacks (C), the module (M) and the data module (D)."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import treadle
from treadle.callbacks.base import HOOKS

MODULE_HOOKS = [name for name in HOOKS if hasattr(treadle.Module, name)]
MODES = [f"on_{stage}_model_{mode}" for stage in ("validation", "test", "predict") for mode in ("eval", "train")]
CHANGES = [
    *["backward", "optimizer_step", "optimizer_zero_grad", "configure_gradient_clipping", "lr_scheduler_step"],
    *["on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer", "configure_optimizers"],
    *["configure_model", "on_validation_model_zero_grad", "training_step", "validation_step", "test_step"],
    *["predict_step", "on_train_batch_start", *MODES],
]
"""What returns something or has a default that matters: noted, then done."""


class One(treadle.Module):
    """One weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def training_step(self, batch: Tensor) -> Tensor:
        return self.weight * batch.mean()

    def validation_step(self, batch: Tensor) -> None: ...
    def test_step(self, batch: Tensor) -> None: ...
    def predict_step(self, batch: Tensor) -> Tensor:
        return batch

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": torch.optim.lr_scheduler.ConstantLR(optimizer), "interval": "step"},
        }


def traced(calls: list[str], *, base: type[One] = One, only: Any = None) -> One:
    """A module that notes every call as ``M.name``; with ``only``, those."""

    def noting(name: str, default: Any) -> Any:
        @functools.wraps(default)
        def noted(self: Any, *arguments: Any, **settings: Any) -> Any:
            calls.append(f"M.{name}")
            return default(self, *arguments, **settings)

        return noted

    names = [*MODULE_HOOKS, "prepare_data", *CHANGES] if only is None else only
    return type("Traced", (base,), {name: noting(name, getattr(base, name)) for name in names})()


class TracedCallback(treadle.Callback):
    """Notes every hook as ``C.name``."""

    def __init__(self, calls: list[str], prefix: str = "C") -> None:
        for hook in HOOKS:
            setattr(self, hook, lambda *_, hook=hook: calls.append(f"{prefix}.{hook}"))


class LateCallback(TracedCallback):
    after_module = True


class TracedData(treadle.DataModule):
    """Two batches for each purpose; notes what it is asked as ``D.name``."""

    def __init__(self, calls: list[str]) -> None:
        super().__init__()
        for method in ("prepare_data", "setup", "teardown"):
            setattr(self, method, lambda *_, method=method: calls.append(f"D.{method}"))
        self.calls = calls

    def _loader(self, name: str) -> list[Tensor]:
        self.calls.append(f"D.{name}")
        return [torch.ones(2), torch.ones(2)]

    def train_dataloader(self) -> Any:
        return self._loader("train_dataloader")

    def val_dataloader(self) -> Any:
        return self._loader("val_dataloader")

    def test_dataloader(self) -> Any:
        return self._loader("test_dataloader")

    def predict_dataloader(self) -> Any:
        return self._loader("predict_dataloader")


def both(*hooks: str) -> list[str]:
    """The callback's hook, then the module's."""
    return [f"{who}.{hook}" for hook in hooks for who in "CM"]


TRANSFER = ["M.on_before_batch_transfer", "M.transfer_batch_to_device", "M.on_after_batch_transfer"]
BEFORE = ["D.prepare_data", "M.prepare_data", "D.setup", *both("setup"), "M.configure_model"]
AFTER = ["D.teardown", *both("teardown")]
TRAINING_BATCH = [
    *TRANSFER,
    *both("on_train_batch_start"),
    "M.optimizer_step",
    "M.training_step",
    *both("on_before_zero_grad"),
    "M.optimizer_zero_grad",
    *both("on_before_backward"),
    "M.backward",
    *both("on_after_backward", "on_before_optimizer_step"),
    "M.configure_gradient_clipping",
    "M.lr_scheduler_step",
    *both("on_train_batch_end"),
]


def evaluation(kind: str, batches: int, *, loader: str = "") -> list[str]:
    step = {"validation": "validation_step", "test": "test_step", "predict": "predict_step"}[kind]
    batch = [*TRANSFER, *both(f"on_{kind}_batch_start"), f"M.{step}", *both(f"on_{kind}_batch_end")]
    return [
        *([loader] if loader else []),
        f"M.on_{kind}_model_eval",
        *both(f"on_{kind}_start", f"on_{kind}_epoch_start"),
        *batch * batches,
        *both(f"on_{kind}_epoch_end", f"on_{kind}_end"),
        f"M.on_{kind}_model_train",
    ]


class TestFit:
    def test_of_one_epoch(self, make_bare: Any) -> None:
        """Two batches with a sanity check and a validation."""
        calls: list[str] = []
        make_bare(callbacks=TracedCallback(calls)).fit(traced(calls), datamodule=TracedData(calls))
        assert calls == [
            *BEFORE,
            "M.configure_optimizers",
            *both("on_fit_start"),
            *["C.on_sanity_check_start", *evaluation("validation", 2, loader="D.val_dataloader")],
            "C.on_sanity_check_end",
            "D.train_dataloader",
            *both("on_train_start", "on_train_epoch_start"),
            *[*TRAINING_BATCH, "C.on_savepoint"] * 2,
            "M.on_validation_model_zero_grad",
            *evaluation("validation", 2),
            *both("on_train_epoch_end"),
            "C.on_savepoint",
            *both("on_train_end", "on_fit_end"),
            *AFTER,
        ]

    def test_of_a_module_that_overrides_nothing_of_the_step(self, make_bare: Any) -> None:
        """The same hooks in the same order, without a closure in between."""
        calls: list[str] = []
        model = traced(calls, only=[*MODULE_HOOKS, "training_step", "on_train_batch_start"])
        make_bare(callbacks=TracedCallback(calls)).fit(model, [torch.ones(2)])
        start, end = calls.index("C.on_train_batch_start"), calls.index("C.on_savepoint")
        assert calls[start:end] == [
            *both("on_train_batch_start"),
            "M.training_step",
            *both("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step"),
            *both("on_train_batch_end"),
        ]

    def test_inside_an_epoch_validation_follows_the_batch(self, make_bare: Any) -> None:
        """A savepoint comes after the validation, so that what is saved has its results."""
        calls: list[str] = []
        trainer = make_bare(callbacks=TracedCallback(calls), val_check_interval=1, num_sanity_val_steps=0)
        trainer.fit(traced(calls), datamodule=TracedData(calls))
        epoch = calls[calls.index("M.on_train_epoch_start") + 1 : calls.index("C.on_train_epoch_end")]
        validated = ["M.on_validation_model_zero_grad", *evaluation("validation", 2), "C.on_savepoint"]
        assert [call for call in epoch if call != "D.val_dataloader"] == [*TRAINING_BATCH, *validated] * 2

    def test_at_an_epochs_end(self, make_bare: Any) -> None:
        """Callbacks with ``after_module`` come after the module, to see what it logged there; else callbacks first."""
        calls: list[str] = []
        callbacks = [LateCallback(calls, "late"), TracedCallback(calls, "early")]
        make_bare(callbacks=callbacks).fit(traced(calls), [torch.ones(1)])
        at_the_end = [call for call in calls if call.endswith("on_train_epoch_end")]
        assert at_the_end == ["early.on_train_epoch_end", "M.on_train_epoch_end", "late.on_train_epoch_end"]
        at_the_start = [call for call in calls if call.endswith("on_train_epoch_start")]
        assert at_the_start == ["late.on_train_epoch_start", "early.on_train_epoch_start", "M.on_train_epoch_start"]

    def test_inside_an_accumulation_window_only_the_last_batch_steps(self, make_bare: Any) -> None:
        calls: list[str] = []
        trainer = make_bare(accumulate_grad_batches=2, num_sanity_val_steps=0)
        trainer.fit(
            traced(calls, only=["training_step", "optimizer_step", "optimizer_zero_grad", "backward"]),
            [torch.ones(1)] * 3,
        )
        first = ["M.training_step", "M.optimizer_zero_grad", "M.backward"]
        second = ["M.optimizer_step", "M.training_step", "M.backward"]
        assert calls == [*first, *second, "M.optimizer_step", *first]


class TestManualOptimization:
    def test_the_step_does_it_all(self, make_bare: Any) -> None:
        """No zero_grad, clipping or scheduler from the loop: what the module calls is what happens."""

        class Manual(One):
            automatic_optimization = False

            def training_step(self, batch: Tensor) -> None:
                optimizer = self.optimizers()
                optimizer.zero_grad()
                self.manual_backward(self.weight * batch.mean())
                optimizer.step()

        calls: list[str] = []
        make_bare(callbacks=TracedCallback(calls)).fit(traced(calls, base=Manual), [torch.ones(2)])
        start, end = calls.index("C.on_train_batch_start"), calls.index("C.on_savepoint")
        assert calls[start:end] == [
            *both("on_train_batch_start"),
            "M.training_step",
            *both("on_before_zero_grad", "on_before_backward"),
            "M.backward",
            *both("on_after_backward", "on_before_optimizer_step"),
            "M.configure_gradient_clipping",
            *both("on_train_batch_end"),
        ]


class TestEvaluation:
    @pytest.mark.parametrize("verb, kind, loader", [("validate", "validation", "val"), ("test", "test", "test")])
    def test_has_no_hook_of_training(self, make_bare: Any, verb: str, kind: str, loader: str) -> None:
        calls: list[str] = []
        getattr(make_bare(callbacks=TracedCallback(calls)), verb)(traced(calls), datamodule=TracedData(calls))
        assert calls == [*BEFORE, f"D.{loader}_dataloader", *evaluation(kind, 2), *AFTER]

    def test_of_predict(self, make_bare: Any) -> None:
        calls: list[str] = []
        make_bare(callbacks=TracedCallback(calls)).predict(traced(calls), datamodule=TracedData(calls))
        assert calls == [*BEFORE, "D.predict_dataloader", *evaluation("predict", 2), *AFTER]

    def test_without_batches_has_none_at_all(self, make_bare: Any) -> None:
        """limit_val_batches=0."""
        calls: list[str] = []
        make_bare(callbacks=TracedCallback(calls), limit_val_batches=0).fit(traced(calls), datamodule=TracedData(calls))
        assert not [call for call in calls if "validation" in call or "sanity" in call or "val_dataloader" in call]


class TestResume:
    def test_saving_is_told_at_a_savepoint(self, make_trainer: Any) -> None:
        calls: list[str] = []
        make_trainer(callbacks=TracedCallback(calls)).fit(traced(calls), [torch.ones(1)])
        end = calls.index("M.on_train_epoch_end")
        assert calls[end : end + 4] == ["M.on_train_epoch_end", "C.on_savepoint", *both("on_save_checkpoint")]

    def test_of_a_resumed_run(self, make_trainer: Any) -> None:
        """Loading between configure_model and configure_optimizers; no sanity check."""
        make_trainer().fit(One(), [torch.ones(1)])
        calls: list[str] = []
        trainer = make_trainer(callbacks=TracedCallback(calls), max_epochs=2)
        trainer.fit(traced(calls), datamodule=TracedData(calls), ckpt_path="last")
        start, end = calls.index("C.on_train_batch_start"), calls.index("C.on_train_epoch_end")
        assert [call for call in calls[:start] if call not in TRANSFER] == [
            *BEFORE,
            *["M.on_load_checkpoint", "C.on_load_checkpoint", "M.configure_optimizers"],
            *both("on_fit_start"),
            "D.train_dataloader",
            *both("on_train_start", "on_train_epoch_start"),
        ]
        assert calls[start - len(TRANSFER) : end].count("C.on_train_batch_start") == 2


class TestTheDataModulesTransferHooks:
    def test_take_the_place_of_the_modules(self, make_bare: Any) -> None:
        """Where both override one, the data module's is called; where it does not, the module's is."""
        calls: list[str] = []

        class Data(TracedData):
            def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
                calls.append(f"D.on_after_batch_transfer {dataloader_idx}")
                return batch + 1

        seen: list[float] = []

        class Sees(One):
            def training_step(self, batch: Tensor) -> Tensor:
                seen.append(float(batch.mean()))
                return super().training_step(batch)

        names = ["on_before_batch_transfer", "on_after_batch_transfer"]
        make_bare(num_sanity_val_steps=0, limit_val_batches=0).fit(
            traced(calls, base=Sees, only=names), datamodule=Data(calls)
        )
        one = ["M.on_before_batch_transfer", "D.on_after_batch_transfer 0"]
        assert [call for call in calls if "transfer" in call] == one * 2
        assert seen == [2.0, 2.0]
