"""ModelPruning: parameters that are set to zero, and stay there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader

import treadle
from treadle.callbacks import ModelCheckpoint
from treadle.callbacks.pruning import ModelPruning
from treadle.callbacks.stochastic_weight_averaging import StochasticWeightAveraging
from treadle.callbacks.weight_averaging import EMAWeightAveraging, WeightAveraging
from treadle.errors import CheckpointError, ConfigError, ModuleError
from treadle.testing import Classifier, NoisyPoints, Points

WEIGHTS = {"parameter_names": ["weight"], "use_lottery_ticket_hypothesis": False}
"""Of the two layers there are 8 and 8."""


class MomentumClassifier(Classifier):
    """With an optimizer that has a state for each parameter."""

    def __init__(self) -> None:
        super().__init__(hidden=4)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


@pytest.fixture
def fit(make_bare: Callable[..., treadle.Trainer]) -> Callable[..., Classifier]:
    """A fit of one epoch, if nothing else is said."""

    def run(callback: treadle.Callback, module: Any = MomentumClassifier, **settings: Any) -> Classifier:
        treadle.seed_everything(1)
        model: Classifier = module()
        validation = settings.pop("validation", None)
        make_bare(callbacks=callback, **settings).fit(model, DataLoader(NoisyPoints(), 4), validation)
        return model

    return run


def zeros(model: nn.Module) -> list[int]:
    """Of the weights of the two layers."""
    return [int((model.layers[index].weight == 0).sum()) for index in (0, 3)]  # type: ignore[index, union-attr]


class Watch(treadle.Callback):
    """``zeros`` lists those of both weights at the start of each epoch."""

    def __init__(self) -> None:
        self.zeros: list[int] = []

    def on_train_epoch_start(self, trainer: treadle.Trainer, module: Any) -> None:
        self.zeros.append(sum(zeros(module)))


class TestWhatIsPruned:
    def test_are_the_smallest_of_all(self, fit: Any) -> None:
        """Half of 16 weights, wherever they are."""
        model = fit(ModelPruning("l1_unstructured", **WEIGHTS))
        assert sum(zeros(model)) == 8
        weights = torch.cat([model.layers[index].weight.flatten() for index in (0, 3)])
        assert weights[weights != 0].abs().min() > 0

    def test_are_weights_and_biases_if_nothing_is_said(self, fit: Any) -> None:
        """11 of 22."""
        model = fit(ModelPruning("l1_unstructured", use_lottery_ticket_hypothesis=False))
        assert sum(int((parameter == 0).sum()) for parameter in model.parameters()) == 11

    def test_is_a_share_of_each_parameter(self, fit: Any) -> None:
        assert zeros(fit(ModelPruning("l1_unstructured", use_global_unstructured=False, **WEIGHTS))) == [4, 4]

    def test_is_a_number(self, fit: Any) -> None:
        assert sum(zeros(fit(ModelPruning("l1_unstructured", amount=3, **WEIGHTS)))) == 3

    def test_is_drawn(self, fit: Any) -> None:
        assert sum(zeros(fit(ModelPruning("random_unstructured", **WEIGHTS)))) == 8

    @pytest.mark.parametrize("name, more", [("ln_structured", {"pruning_norm": 2}), ("random_structured", {})])
    def test_are_channels(self, fit: Any, name: str, more: dict[str, int]) -> None:
        """Half of the rows of each weight."""
        model = fit(ModelPruning(name, use_global_unstructured=False, pruning_dim=0, **more, **WEIGHTS))
        assert zeros(model) == [4, 4]
        assert [(model.layers[index].weight == 0).all(1).sum() for index in (0, 3)] == [2, 1]

    def test_is_what_a_class_of_ones_own_says(self, fit: Any) -> None:
        class Even(prune.BasePruningMethod):
            PRUNING_TYPE = "unstructured"

            def __init__(self, amount: float) -> None:
                pass

            def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
                mask = default_mask.clone()
                mask.view(-1)[::2] = 0
                return mask

        assert sum(zeros(fit(ModelPruning(Even, **WEIGHTS)))) == 8

    def test_is_what_is_named(self, fit: Any) -> None:
        model = MomentumClassifier()
        places = [(model.layers[0], "weight")]
        callback = ModelPruning("l1_unstructured", places, use_lottery_ticket_hypothesis=False)
        assert zeros(fit(callback, module=lambda: model)) == [4, 0]


class TestWhenItIsPruned:
    def test_is_at_the_end_of_each_epoch(self, fit: Any) -> None:
        """Half of what is left, each time."""
        watch = Watch()
        fit([ModelPruning("l1_unstructured", **WEIGHTS), watch], max_epochs=4)
        assert watch.zeros == [0, 8, 12, 14]

    def test_may_be_said_by_epoch(self, fit: Any) -> None:
        watch = Watch()
        pruning = ModelPruning(
            "l1_unstructured", amount=lambda epoch: epoch, apply_pruning=lambda epoch: epoch != 2, **WEIGHTS
        )
        fit([pruning, watch], max_epochs=5)
        assert watch.zeros == [0, 0, 1, 1, 4]

    def test_may_be_after_each_validation(self, fit: Any) -> None:
        """Also those inside an epoch, but the sanity check; tensors of inference mode are never trained."""
        watch = Watch()
        pruning = ModelPruning("l1_unstructured", prune_on_train_epoch_end=False, **WEIGHTS)
        loader = Points().val_dataloader()
        model = fit([pruning, watch], max_epochs=2, val_check_interval=2, validation=loader, num_sanity_val_steps=1)
        assert watch.zeros == [0, 12]
        assert not any(parameter.is_inference() for parameter in model.parameters())

    def test_is_not_a_validation_outside_of_a_fit(self, fit: Any) -> None:
        pruning = ModelPruning("l1_unstructured", prune_on_train_epoch_end=False, **WEIGHTS)
        model = fit(pruning)
        model.trainer.validate(model, datamodule=Points(), verbose=False)
        assert zeros(model) == [0, 0]

    def test_is_not_where_a_fit_ends_inside_an_epoch(self, fit: Any) -> None:
        """It goes on when the run is prolonged."""
        assert sum(zeros(fit(ModelPruning("l1_unstructured", **WEIGHTS), max_epochs=2, max_steps=7))) == 8

    def test_is_never_if_one_says_so(self, fit: Any) -> None:
        assert zeros(fit(ModelPruning("l1_unstructured", apply_pruning=False, **WEIGHTS))) == [0, 0]


class TestWhatIsLeft:
    def test_is_trained_and_the_rest_stays_zero(self, fit: Any) -> None:
        watch = Watch()
        pruning = ModelPruning("l1_unstructured", apply_pruning=lambda epoch: epoch == 0, **WEIGHTS)
        model = fit([pruning, watch], max_epochs=3)
        assert watch.zeros == [0, 8, 8]
        assert sum(zeros(model)) == 8

    def test_starts_from_its_initial_value_again(self, fit: Any) -> None:
        """The lottery ticket hypothesis, the default."""
        treadle.seed_everything(1)
        initial = MomentumClassifier().layers[0].weight
        weight = fit(ModelPruning("l1_unstructured", parameter_names=["weight"])).layers[0].weight
        assert torch.equal(weight, torch.where(weight == 0, weight, initial))

    def test_starts_from_its_initial_value_in_the_epochs_one_wishes(self, fit: Any) -> None:
        treadle.seed_everything(1)
        initial = MomentumClassifier().layers[0].weight
        pruning = ModelPruning(
            "l1_unstructured", parameter_names=["weight"], use_lottery_ticket_hypothesis=lambda epoch: epoch == 1
        )
        once, twice = [fit(pruning, max_epochs=epochs).layers[0].weight for epochs in (1, 2)]
        assert not torch.equal(once, torch.where(once == 0, once, initial))
        assert torch.equal(twice, torch.where(twice == 0, twice, initial))

    def test_is_drawn_anew(self, fit: Any) -> None:
        """And what is not pruned is left as it was trained."""
        places = ModelPruning("l1_unstructured", parameter_names=["weight"], resample_parameters=True)
        drawn = fit(places)
        trained = fit(ModelPruning("l1_unstructured", **WEIGHTS))
        assert torch.equal(drawn.layers[0].bias, trained.layers[0].bias)
        weight, other = drawn.layers[0].weight, trained.layers[0].weight
        assert torch.equal(weight == 0, other == 0)
        assert not torch.isclose(weight[weight != 0], other[weight != 0]).any()

    def test_is_plain_in_the_end(self, fit: Any) -> None:
        model = fit(ModelPruning("l1_unstructured", **WEIGHTS))
        assert model.state_dict().keys() == MomentumClassifier().state_dict().keys()
        assert not prune.is_pruned(model)

    def test_keeps_its_masks_if_one_wishes(self, fit: Any) -> None:
        model = fit(ModelPruning("l1_unstructured", make_pruning_permanent=False, **WEIGHTS))
        assert prune.is_pruned(model)
        assert sum(zeros(model)) == 8
        assert int(sum((layer.weight_mask == 0).sum() for layer in (model.layers[0], model.layers[3]))) == 8
        with pytest.raises(ConfigError, match=r"layers\.0\.weight is pruned already"):
            model.trainer.fit(model, datamodule=Points())

    def test_is_plain_after_an_exception(self, make_bare: Any) -> None:
        """So that the same module can be fitted again."""

        class Interrupted(treadle.Callback):
            def on_train_epoch_start(self, trainer: treadle.Trainer, module: Any) -> None:
                if trainer.current_epoch == 1:
                    raise KeyboardInterrupt

        model = MomentumClassifier()
        with pytest.raises(KeyboardInterrupt):
            make_bare(callbacks=[ModelPruning("l1_unstructured", **WEIGHTS), Interrupted()], max_epochs=2).fit(
                model, datamodule=Points()
            )
        assert not prune.is_pruned(model)
        assert sum(zeros(model)) == 8


class TestWhatItSays:
    @pytest.mark.parametrize("verbose, lines", [(0, 0), (1, 1), (2, 3)])
    def test_is_as_much_as_one_wishes(
        self, fit: Any, verbose: int, lines: int, capsys: pytest.CaptureFixture[str]
    ) -> None:
        fit(ModelPruning("l1_unstructured", use_global_unstructured=False, verbose=verbose, **WEIGHTS))
        said = [line for line in capsys.readouterr().out.splitlines() if line]
        assert len(said) == lines
        expected = [
            "ModelPruning: epoch 0, 8 of 16 parameters are zero.",
            "  layers.0.weight: 4 of 8",
            "  layers.3.weight: 4 of 8",
        ]
        assert said == expected[:lines]


class TestACheckpoint:
    def test_loads_into_a_module_that_was_never_pruned(self, make_trainer: Any) -> None:
        trainer = make_trainer(callbacks=ModelPruning("l1_unstructured", **WEIGHTS), max_epochs=2)
        trainer.fit(MomentumClassifier(), datamodule=Points())
        path = trainer.checkpoint_callback.last_model_path
        loaded = MomentumClassifier.load_from_checkpoint(path)
        assert sum(zeros(loaded)) == 12
        assert loaded.state_dict().keys() == torch.load(path, weights_only=True)["state_dict"].keys()

    def test_is_tested_without_the_callback(self, make_trainer: Any, make_bare: Any) -> None:
        trainer = make_trainer(callbacks=ModelPruning("l1_unstructured", **WEIGHTS))
        trainer.fit(MomentumClassifier(), datamodule=Points())
        model = MomentumClassifier()
        path = trainer.checkpoint_callback.last_model_path
        make_bare().test(model, datamodule=Points(), ckpt_path=path, verbose=False)
        assert sum(zeros(model)) == 8

    def test_with_more_pruned_than_is_asked_for_is_an_error(self, make_trainer: Any) -> None:
        make_trainer(callbacks=ModelPruning("l1_unstructured", **WEIGHTS)).fit(
            MomentumClassifier(), datamodule=Points()
        )
        model = MomentumClassifier()
        fewer = ModelPruning("l1_unstructured", [(model.layers[0], "weight")])
        with pytest.raises(CheckpointError, match=r"has layers\.3\.weight pruned"):
            make_trainer(callbacks=fewer, max_epochs=2).fit(model, datamodule=Points(), ckpt_path="last")


class TestSettingsThatMakeNoSense:
    @pytest.mark.parametrize(
        "settings",
        [
            {"pruning_fn": "l1_unstructerd"},
            {"pruning_fn": prune.l1_unstructured},
            {"amount": 1.5},
            {"amount": -1},
            {"pruning_fn": "ln_structured", "pruning_dim": 0, "pruning_norm": 1},
            {"pruning_fn": "ln_structured", "use_global_unstructured": False, "pruning_norm": 1},
            {"pruning_fn": "ln_structured", "use_global_unstructured": False, "pruning_dim": 0},
            {"pruning_fn": "random_structured", "use_global_unstructured": False, "pruning_dim": 0, "pruning_norm": 1},
            {"pruning_dim": 0},
            {"parameter_names": ["weight"], "parameters_to_prune": [(nn.Linear(1, 1), "weight")]},
            {"resample_parameters": True, "use_lottery_ticket_hypothesis": False},
        ],
        ids=lambda settings: ",".join(settings),
    )
    def test_are_an_error(self, settings: dict[str, Any]) -> None:
        with pytest.raises(ConfigError):
            ModelPruning(**{"pruning_fn": "l1_unstructured", **settings})

    def test_as_a_misspelled_method_name_the_right_one(self) -> None:
        with pytest.raises(ConfigError) as error:
            ModelPruning("l1_unstructerd")
        assert error.value.fix == "did you mean 'l1_unstructured'?"

    @pytest.mark.parametrize(
        "settings, message",
        [
            ({"parameter_names": ["kernel"]}, "no parameter called kernel"),
            ({"parameters_to_prune": [(nn.Linear(1, 1), "weight")]}, "names 'weight' of a Linear"),
        ],
        ids=["name", "layer"],
    )
    def test_as_nothing_to_prune_are_an_error(self, fit: Any, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            fit(ModelPruning("l1_unstructured", **settings))

    def test_as_a_parameter_that_two_layers_share_are_an_error(self, fit: Any) -> None:
        class Tied(Classifier):
            def __init__(self) -> None:
                super().__init__(hidden=2)
                self.layers[3].weight = self.layers[0].weight

        with pytest.raises(ConfigError, match="a parameter twice"):
            fit(ModelPruning("l1_unstructured"), module=Tied)

    def test_as_more_than_there_is_are_an_error(self, fit: Any) -> None:
        """Of eight that are left after the first epoch, 9 can't be pruned."""
        with pytest.raises(ConfigError, match="pruning by 9 at epoch 1 doesn't work"):
            fit(ModelPruning("l1_unstructured", amount=9, **WEIGHTS), max_epochs=2)

    @pytest.mark.parametrize(
        "other",
        [EMAWeightAveraging(), WeightAveraging(), StochasticWeightAveraging(0.1)],
        ids=["ema", "mean", "stochastic"],
    )
    def test_as_an_average_of_what_is_pruned_are_an_error(self, fit: Any, other: treadle.Callback) -> None:
        with pytest.raises(ConfigError, match="ModelPruning with"):
            fit([ModelPruning("l1_unstructured"), other])

    def test_as_a_layer_that_is_not_drawn_anew_are_an_error(self, fit: Any) -> None:
        class Scale(Classifier):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.ones(2))

        with pytest.raises(ModuleError, match="Scale has no reset_parameters"):
            fit(ModelPruning("l1_unstructured", resample_parameters=True), module=Scale)


# --- resuming ---


class Killed(BaseException):
    """Stands for SIGKILL."""


class KillAfter(treadle.Callback):
    def __init__(self, batches: int | None) -> None:
        self.batches = batches

    def on_train_batch_start(
        self, trainer: treadle.Trainer, module: treadle.Module, batch: Any, batch_idx: int
    ) -> None:
        if trainer.progress.batches == self.batches:
            raise Killed

    def on_train_epoch_end(self, trainer: treadle.Trainer, module: treadle.Module) -> None:
        if trainer.progress.batches == self.batches:
            raise Killed  # what is saved is the state after the epoch's last batch


def run(
    root: Path,
    callback: treadle.Callback,
    *,
    kill_after: int | None = None,
    ckpt_path: str | None = None,
    **settings: Any,
) -> tuple[Classifier, str]:
    """Three epochs of five steps, saved after each. Returns the module and the rows."""
    treadle.seed_everything(7 if ckpt_path is None else 999)
    model = MomentumClassifier()
    settings = {"max_epochs": 3, "log_every_n_steps": 1, "enable_progress_bar": False, **settings}
    saves = [KillAfter(kill_after), ModelCheckpoint(every="1 step")]
    trainer = treadle.Trainer(default_root_dir=root, callbacks=[callback, *saves], **settings)
    try:
        trainer.fit(model, DataLoader(NoisyPoints(), 4, shuffle=True), Points().val_dataloader(), ckpt_path=ckpt_path)
    except Killed:
        assert kill_after is not None
    return model, (root / "runs/version_0/metrics.csv").read_text()


def same(one: Any, other: Any) -> bool:
    """Bit for bit, tensors within dicts and lists too."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


class TestARunStoppedAndResumed:
    def check(self, tmp_path: Path, make: Any, kills: Any, **settings: Any) -> None:
        whole, rows = run(tmp_path / "whole", make(), **settings)
        for kill in kills:
            root = tmp_path / f"killed after {kill}"
            run(root, make(), kill_after=kill, **settings)
            again, resumed_rows = run(root, make(), ckpt_path="last", **settings)
            for one, other in ((again, whole), (again.trainer.optimizers[0], whole.trainer.optimizers[0])):
                assert same(one.state_dict(), other.state_dict()), f"differs after {kill} batches"
            assert resumed_rows == rows, f"rows differ after {kill} batches"

    @pytest.mark.parametrize(
        "settings",
        [
            {"pruning_fn": "l1_unstructured", "amount": 0.3},
            {
                "pruning_fn": "l1_unstructured",
                "use_lottery_ticket_hypothesis": False,
                "make_pruning_permanent": False,
            },
            {"pruning_fn": "random_unstructured", "resample_parameters": True, "parameter_names": ["weight"]},
            {
                "pruning_fn": "ln_structured",
                "use_global_unstructured": False,
                "pruning_dim": 0,
                "pruning_norm": 1,
                "parameter_names": ["weight"],
            },
        ],
        ids=["lottery", "trained on, with originals", "drawn anew", "channels"],
    )
    def test_prunes_on(self, tmp_path: Path, settings: dict[str, Any]) -> None:
        """Also from the state after an epoch's last batch, with no forward before it prunes."""
        self.check(tmp_path, lambda: ModelPruning(**settings), (3, 5, 7, 10, 12), limit_val_batches=0)

    def test_prunes_on_at_validations_in_an_accumulation_window(self, tmp_path: Path) -> None:
        self.check(
            tmp_path,
            lambda: ModelPruning("l1_unstructured", prune_on_train_epoch_end=False, amount=0.2),
            (3, 8, 9),
            val_check_interval=3,
            accumulate_grad_batches=2,
        )

    def test_is_prolonged_also_from_a_checkpoint_without_masks(self, tmp_path: Path) -> None:
        """trainer.save_checkpoint after a fit that made the pruning permanent: the originals are in the callback's state."""

        def make() -> ModelPruning:
            return ModelPruning("l1_unstructured", amount=0.3, use_lottery_ticket_hypothesis=False)

        whole, _ = run(tmp_path / "whole", make())
        short, _ = run(tmp_path / "short", make(), max_epochs=2)
        short.trainer.save_checkpoint(tmp_path / "short/after.ckpt")
        again, _ = run(tmp_path / "short", make(), ckpt_path=str(tmp_path / "short/after.ckpt"))
        assert same(again.state_dict(), whole.state_dict())

    def test_that_is_finished_ends_the_same(self, tmp_path: Path) -> None:
        pruning = {"pruning_fn": "l1_unstructured", "amount": 0.3}
        whole, _ = run(tmp_path, ModelPruning(**pruning))
        again, _ = run(tmp_path, ModelPruning(**pruning), ckpt_path="last")
        assert again.seen == []
        assert same(again.state_dict(), whole.state_dict())
