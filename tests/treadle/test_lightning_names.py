"""Programs written for PyTorch Lightning, of which only the imports change."""

import importlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import treadle
import treadle.lightning
from treadle.errors import ConfigError
from treadle.lightning.names import INSTEAD, ROOT
from treadle.testing import Classifier, Points

CLASSIFIER = """
import os
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint, Timer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.profilers import SimpleProfiler
from lightning.pytorch.utilities.types import STEP_OUTPUT, OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split


class Blobs(L.LightningDataModule):
    def __init__(self, data_dir: str, batch_size: int = 8, classes: int = 3) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["data_dir"])
        self.data_dir = data_dir

    def prepare_data(self) -> None:
        generator = torch.Generator().manual_seed(1)
        targets = torch.randint(self.hparams.classes, (96,), generator=generator)
        inputs = F.one_hot(targets, 4).float() + 0.3 * torch.randn(96, 4, generator=generator)
        os.makedirs(self.data_dir, exist_ok=True)
        torch.save({"inputs": inputs, "targets": targets}, os.path.join(self.data_dir, "blobs.pt"))

    def setup(self, stage: str) -> None:
        data = torch.load(os.path.join(self.data_dir, "blobs.pt"))
        whole = TensorDataset(data["inputs"], data["targets"])
        parts = random_split(whole, [64, 16, 16], generator=torch.Generator().manual_seed(2))
        self.train_set, self.val_set, self.test_set = parts

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_set, batch_size=self.hparams.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> list[DataLoader]:
        return [DataLoader(part, batch_size=8) for part in (self.val_set, self.test_set)]

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test_set, batch_size=8)

    def predict_dataloader(self) -> DataLoader:
        return DataLoader(self.test_set, batch_size=8)


class Net(nn.Module):
    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


class LitClassifier(L.LightningModule):
    def __init__(self, width: int = 16, classes: int = 3, lr: float = 0.02, warmup: int = 4, backbone_factor: float = 0.5):
        super().__init__()
        self.save_hyperparameters()
        self.net = Net(width, classes)
        self.criterion = nn.CrossEntropyLoss()
        self.example_input_array = torch.zeros(2, 4)
        self.validation_step_outputs: list[Tensor] = []
        self.grad_norms: list[float] = []
        self.moved = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def shared_step(self, batch: Any, stage: str) -> tuple[Tensor, Tensor, Tensor]:
        x, y = batch
        logits = self(x)
        loss = self.criterion(logits, y)
        accuracy = (logits.argmax(dim=-1) == y).float().mean()
        self.log_dict({f"{stage}_loss": loss, f"{stage}_acc": accuracy}, prog_bar=True, on_step=stage == "train", on_epoch=True)
        return loss, logits, y

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.moved += 1
        return batch

    def training_step(self, batch: Any, batch_idx: int) -> STEP_OUTPUT:
        loss, logits, _ = self.shared_step(batch, "train")
        return {"loss": loss, "logits": logits.detach()}

    def on_train_batch_end(self, outputs: STEP_OUTPUT, batch: Any, batch_idx: int) -> None:
        assert outputs["logits"].shape == (8, self.hparams.classes)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        loss, logits, y = self.shared_step(batch, "val")
        if dataloader_idx == 0:
            self.validation_step_outputs.append((logits.argmax(-1) == y).float())

    def on_validation_epoch_end(self) -> None:
        hits = torch.cat(self.validation_step_outputs)
        self.log("val_hits", hits.mean())
        self.validation_step_outputs.clear()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.shared_step(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        x, _ = batch
        return self(x).softmax(dim=-1)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        norms = [p.grad.norm() for p in self.parameters() if p.grad is not None]
        self.grad_norms.append(torch.stack(norms).norm().item())

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.AdamW(
            [
                {"params": self.net.backbone.parameters(), "lr": self.hparams.lr * self.hparams.backbone_factor},
                {"params": self.net.head.parameters()},
            ],
            lr=self.hparams.lr,
        )
        total = self.trainer.estimated_stepping_batches

        def factor(step: int) -> float:
            if step < self.hparams.warmup:
                return (step + 1) / self.hparams.warmup
            return max(0.0, (total - step) / (total - self.hparams.warmup))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "warmup"}}

    def configure_callbacks(self) -> list[L.Callback]:
        return [EarlyStopping(monitor="val_hits", mode="max", patience=50)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["moved"] = self.moved

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.moved = checkpoint["moved"]


class CountSteps(L.Callback):
    def __init__(self) -> None:
        self.steps = 0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs, batch, batch_idx) -> None:
        assert pl_module is trainer.lightning_module
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps = state_dict["steps"]


def main(root: str, max_epochs: int = 4, ckpt_path: str | None = None) -> tuple[L.Trainer, LitClassifier, Blobs]:
    L.seed_everything(2, workers=True)
    datamodule = Blobs(os.path.join(root, "data"))
    model = LitClassifier()
    checkpoint = ModelCheckpoint(monitor="val_hits", mode="max", save_top_k=1, save_last=True, filename="{epoch}-{val_hits:.2f}")
    trainer = L.Trainer(
        accelerator="auto",
        devices=1,
        max_epochs=max_epochs,
        precision="32-true",
        accumulate_grad_batches=2,
        gradient_clip_val=1.0,
        gradient_clip_algorithm="norm",
        log_every_n_steps=2,
        check_val_every_n_epoch=1,
        num_sanity_val_steps=1,
        deterministic=True,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=root,
        logger=CSVLogger(root, name="logs"),
        profiler=SimpleProfiler(filename="perf"),
        callbacks=[checkpoint, LearningRateMonitor(logging_interval="step"), Timer(), CountSteps()],
    )
    trainer.fit(model, datamodule=datamodule, ckpt_path=ckpt_path)
    return trainer, model, datamodule
"""

GAN = """
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import nn


class GAN(pl.LightningModule):
    def __init__(self, latent_dim=3, lr=0.01):
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(latent_dim, 8), nn.ReLU(), nn.Linear(8, 2))
        self.discriminator = nn.Sequential(nn.Linear(2, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))

    def forward(self, z):
        return self.generator(z)

    def adversarial_loss(self, y_hat, y):
        return nn.functional.binary_cross_entropy_with_logits(y_hat, y)

    def training_step(self, batch, batch_idx):
        (real,) = batch
        optimizer_g, optimizer_d = self.optimizers()
        scheduler_g, scheduler_d = self.lr_schedulers()
        z = torch.randn(real.shape[0], self.hparams.latent_dim).type_as(real)
        ones, zeros = torch.ones(len(real), 1).type_as(real), torch.zeros(len(real), 1).type_as(real)

        self.toggle_optimizer(optimizer_g)
        assert not any(p.requires_grad for p in self.discriminator.parameters())
        g_loss = self.adversarial_loss(self.discriminator(self(z)), ones)
        self.log("g_loss", g_loss, prog_bar=True)
        self.manual_backward(g_loss)
        self.clip_gradients(optimizer_g, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
        optimizer_g.step()
        optimizer_g.zero_grad()
        self.untoggle_optimizer(optimizer_g)

        self.toggle_optimizer(optimizer_d)
        real_loss = self.adversarial_loss(self.discriminator(real), ones)
        fake_loss = self.adversarial_loss(self.discriminator(self(z).detach()), zeros)
        d_loss = (real_loss + fake_loss) / 2
        self.log("d_loss", d_loss, prog_bar=True)
        self.manual_backward(d_loss)
        optimizer_d.step()
        optimizer_d.zero_grad()
        self.untoggle_optimizer(optimizer_d)

        if self.trainer.is_last_batch:
            scheduler_g.step()
            scheduler_d.step()

    def configure_optimizers(self):
        optimizer_g = torch.optim.Adam(self.generator.parameters(), lr=self.hparams.lr, betas=(0.5, 0.999))
        optimizer_d = torch.optim.Adam(self.discriminator.parameters(), lr=self.hparams.lr, betas=(0.5, 0.999))
        schedulers = [torch.optim.lr_scheduler.ExponentialLR(o, gamma=0.9) for o in (optimizer_g, optimizer_d)]
        return [optimizer_g, optimizer_d], schedulers


class Epochs(Callback):
    def __init__(self):
        self.losses = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.losses.append(trainer.callback_metrics["d_loss"].item())


def main(root):
    pl.seed_everything(7)
    points = torch.utils.data.TensorDataset(torch.randn(40, 2) * 0.5 + 2)
    loader = torch.utils.data.DataLoader(points, batch_size=8, shuffle=True)
    callback = Epochs()
    model = GAN()
    bar = {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_epochs=3, logger=False, enable_checkpointing=False, callbacks=[callback], **bar)
    trainer.fit(model, loader)
    return trainer, model, callback
"""


def migrated(source: str) -> str:
    """The program with its imports changed, and nothing else."""
    text, changed = re.subn(
        r"^(import|from) (?:pytorch_)?lightning\b", r"\1 treadle.lightning", source, flags=re.MULTILINE
    )
    assert changed
    return text


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Any]:
    """Makes a migrated program an imported module."""

    def make(name: str, source: str) -> ModuleType:
        (tmp_path / f"{name}.py").write_text(migrated(source))
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    return make


def weights(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([value.detach().flatten().double() for value in module.state_dict().values()])


class TestAProgramOfWhichOnlyTheImportsChange:
    def test_trains_validates_tests_and_predicts(self, program: Any, tmp_path: Path) -> None:
        lit = program("lit_classifier", CLASSIFIER)
        trainer, model, datamodule = lit.main(str(tmp_path))
        assert trainer.lightning_module is model
        assert (trainer.current_epoch, trainer.global_step) == (4, 16)
        assert model.hparams.lr == 0.02
        assert len(model.grad_norms) == 16
        metrics = trainer.callback_metrics
        assert {"train_loss", "train_loss_epoch", "val_loss/dataloader_idx_0", "val_loss/dataloader_idx_1"} <= set(
            metrics
        )
        assert metrics["val_hits"] > 0.9
        (results,) = trainer.test(model, datamodule=datamodule, verbose=False)
        assert results["test_acc"] > 0.9
        predictions = trainer.predict(model, datamodule=datamodule)
        assert [batch.shape for batch in predictions] == [(8, 3), (8, 3)]

    def test_finds_its_checkpoints(self, program: Any, tmp_path: Path) -> None:
        lit = program("lit_classifier", CLASSIFIER)
        trainer, model, _ = lit.main(str(tmp_path))
        assert re.fullmatch(r"epoch=\d-val_hits=\d\.\d\d\.ckpt", Path(trainer.checkpoint_callback.best_model_path).name)
        loaded = lit.LitClassifier.load_from_checkpoint(trainer.checkpoint_callback.last_model_path)
        assert loaded.moved == model.moved
        assert torch.equal(weights(loaded), weights(model))

    def test_continues_bit_for_bit(self, program: Any, tmp_path: Path) -> None:
        """What it did not do there: the resumed run is the one that never stopped."""
        lit = program("lit_classifier", CLASSIFIER)
        _, whole, _ = lit.main(str(tmp_path / "whole"))
        # The schedule is drawn over all epochs, as it would be in a run that was killed.
        lit.LitClassifier.on_train_epoch_start = stop_in_epoch_2
        stopped, _, _ = lit.main(str(tmp_path / "stopped"))
        del lit.LitClassifier.on_train_epoch_start
        last = stopped.checkpoint_callback.last_model_path
        trainer, resumed, _ = lit.main(str(tmp_path / "stopped"), ckpt_path=last)
        assert trainer.global_step == 16
        assert torch.equal(weights(whole), weights(resumed))
        (steps,) = (c.steps for c in trainer.callbacks if isinstance(c, lit.CountSteps))
        assert steps == 32

    def test_optimizes_by_hand(self, program: Any, tmp_path: Path) -> None:
        """Two optimizers, toggled, with schedules of their own."""
        trainer, model, callback = program("gan", GAN).main(str(tmp_path))
        assert len(callback.losses) == 3
        assert callback.losses[2] != callback.losses[0]
        assert all(p.requires_grad for p in model.parameters())
        assert [o.param_groups[0]["lr"] for o in trainer.optimizers] == pytest.approx([0.01 * 0.9**3] * 2)


def stop_in_epoch_2(self: Any) -> None:
    if self.current_epoch == 2:
        self.trainer.should_stop = True


class TestTheOldNames:
    def test_are_what_the_new_ones_are(self) -> None:
        """Or derived from them, where arguments had other names: a program may mix both."""
        L = treadle.lightning
        assert issubclass(L.LightningModule, treadle.Module)
        assert L.LightningDataModule is treadle.DataModule
        assert L.Callback is L.pytorch.Callback is treadle.Callback
        assert L.Fabric is treadle.Fabric
        assert issubclass(L.Trainer, treadle.Trainer)
        assert L.pytorch.Trainer is L.Trainer

    @pytest.mark.parametrize("part", ["callbacks", "loggers", "profilers"])
    def test_of_a_part_are_found_by_every_path(self, part: str) -> None:
        ours = importlib.import_module(f"treadle.{part}")
        places = [
            getattr(treadle.lightning, part),
            getattr(treadle.lightning.pytorch, part),
            importlib.import_module(f"treadle.lightning.{part}"),
            importlib.import_module(f"treadle.lightning.pytorch.{part}"),
        ]
        for name in ours.__all__:
            for place in places:
                assert getattr(place, name) is getattr(ours, name)
        assert dir(places[0]) == sorted(ours.__all__)

    def test_are_all_there(self) -> None:
        for module in (treadle.lightning, treadle.lightning.pytorch):
            assert list(dir(module)) == sorted(module.__all__)
            for name in ROOT:
                assert getattr(module, name) is not None

    def test_live_nowhere_else(self) -> None:
        with pytest.raises(AttributeError, match="its name here is Module"):
            _ = treadle.LightningModule
        with pytest.raises(AttributeError):
            _ = treadle.Trainer(logger=False, enable_checkpointing=False).lightning_module

    def test_import_only_what_is_used(self) -> None:
        """Nor does anything below import them."""
        code = """
import sys, treadle.lightning
print("torch" in sys.modules)
import treadle.trainer, treadle.callbacks, treadle.cli
print([name for name in sys.modules if name.startswith("treadle.lightning.")])
"""
        done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines() == ["False", "['treadle.lightning.names']"]


class TestTheTrainerByItsOldName:
    def test_has_the_old_properties(self, tmp_path: Path) -> None:
        trainer = treadle.lightning.Trainer(
            default_root_dir=tmp_path, max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False
        )
        assert trainer.lightning_module is None
        module = Classifier()
        trainer.fit(module, Points())
        assert trainer.lightning_module is module
        assert trainer.precision_plugin is trainer.fabric.precision
        assert trainer.progress_bar_callback is None


class TestSeedEverything:
    def test_seeds_as_ours_does(self, capsys: pytest.CaptureFixture[str]) -> None:
        """With workers=True and without: they draw from what is seeded anyway."""
        draws = []
        for seed in (
            lambda: treadle.seed_everything(42),
            lambda: treadle.lightning.seed_everything(42),
            lambda: treadle.lightning.seed_everything(42, workers=True, verbose=False),
        ):
            assert seed() == 42
            draws.append(torch.rand(3))
        assert torch.equal(draws[0], draws[1])
        assert torch.equal(draws[0], draws[2])
        assert capsys.readouterr().err == "seed set to 42\n"

    def test_says_that_it_was_given_none(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert treadle.lightning.seed_everything() == 0
        assert capsys.readouterr().err == "seed set to 0: none was given\n"

    def test_is_silent_on_other_ranks(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RANK", "1")
        treadle.lightning.seed_everything(3)
        assert capsys.readouterr().err == ""

    @pytest.mark.parametrize("arguments", [{"seed": -1}, {"seed": "42"}, {"seed": 1, "workers": 4}])
    def test_refuses_what_can_not_be(self, arguments: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match="seed"):
            treadle.lightning.seed_everything(**arguments)


MISSING = [
    ("callbacks", "TQDMProgressBar", "RichProgressBar"),
    ("callbacks", "RichModelSummary", "ModelSummary"),
    ("profilers", "XLAProfiler", "PyTorchProfiler"),
    ("cli", "LightningCLI", "treadle.cli.main"),
    ("strategies", "DDPStrategy", "Trainer(strategy=...)"),
    ("plugins", "MixedPrecision", "Trainer(precision=...)"),
    ("tuner", "Tuner", "Trainer(max_steps=...)"),
    ("utilities", "rank_zero_only", "trainer.is_global_zero"),
]


class TestANameThatIsNotHere:
    @pytest.mark.parametrize("part, name, instead", MISSING)
    def test_says_what_to_use_instead(self, part: str, name: str, instead: str) -> None:
        """As an attribute, and in an import: Python drops the text of an AttributeError there."""
        module = getattr(treadle.lightning.pytorch, part)
        with pytest.raises(AttributeError, match=re.escape(instead)):
            getattr(module, name)
        assert not hasattr(module, name)
        for path in ("treadle.lightning", "treadle.lightning.pytorch"):
            with pytest.raises(ImportError, match=re.escape(instead)):
                exec(f"from {path}.{part} import {name}", {})

    def test_says_so_at_the_top_too(self) -> None:
        with pytest.raises(AttributeError, match=r"treadle\.cli\.main"):
            _ = treadle.lightning.LightningCLI
        with pytest.raises(ImportError, match=r"treadle\.cli\.main"):
            exec("from treadle.lightning import LightningCLI", {})

    def test_and_never_was_is_an_ordinary_error(self) -> None:
        with pytest.raises(AttributeError, match="has no attribute 'LightningModul'; there are Callback"):
            _ = treadle.lightning.LightningModul
        with pytest.raises(ImportError, match="cannot import name 'Modelcheckpoint'"):
            exec("from treadle.lightning.pytorch.callbacks import Modelcheckpoint", {})

    @pytest.mark.parametrize("name", sorted(INSTEAD))
    def test_is_answered_with_things_that_exist(self, name: str) -> None:
        """A table of advice ages: every name of ours in it must still be one."""
        for dotted in re.findall(r"(?:treadle|torch)(?:\.\w+)+", INSTEAD[name]):
            thing: Any = importlib.import_module(dotted.split(".")[0])
            for part in dotted.split(".")[1:]:
                try:
                    thing = getattr(thing, part)
                except AttributeError:
                    thing = importlib.import_module(f"{thing.__name__}.{part}")
        here = [
            name
            for part in ("callbacks", "loggers", "profilers")
            for name in importlib.import_module(f"treadle.{part}").__all__
        ]
        assert name not in here, "it is here now: take it out of the table"
        for word in re.findall(r"\b[A-Z]\w+(?:Bar|Summary|Checkpoint|Monitor|Profiler|Logger)\b", INSTEAD[name]):
            assert word in here
