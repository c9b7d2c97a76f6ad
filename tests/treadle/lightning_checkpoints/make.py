"""Wrote the files beside it, with the real library: versions are in README.md. CI has no Lightning; nothing here is run.

python make.py FOLDER [NAME ...]
"""

import enum
import functools
import pathlib
import sys
import warnings

import numpy
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

try:
    import lightning.pytorch as pl
except ImportError:
    import pytorch_lightning as pl

warnings.simplefilter("ignore")


class Colour(enum.Enum):
    RED = "red"


class Loss:
    def __init__(self, weight):
        self.weight = weight


class Net(pl.LightningModule):
    def __init__(self, hidden=4, lr=0.05, schedule="onecycle", total=12, **more):
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.Sequential(nn.Linear(3, hidden), nn.Tanh(), nn.Linear(hidden, 1))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = nn.functional.mse_loss(self.layers(x).squeeze(-1), y)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", nn.functional.mse_loss(self.layers(x).squeeze(-1), y))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)
        if self.hparams.schedule == "plateau":
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=self.hparams.lr, total_steps=self.hparams.total
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Configured(Net):
    def __init__(self, conf):
        super(Net, self).__init__()
        self.save_hyperparameters(conf)
        self.layers = nn.Sequential(nn.Linear(3, conf.hidden), nn.Tanh(), nn.Linear(conf.hidden, 1))


class Two(Net):
    """Two optimizers, stepped by hand."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    def configure_optimizers(self):
        return [
            torch.optim.SGD(self.layers[0].parameters(), lr=0.1),
            torch.optim.SGD(self.layers[2].parameters(), lr=0.1),
        ]


class Data(pl.LightningDataModule):
    def __init__(self, batch_size=4):
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self):
        x = torch.linspace(-1, 1, 48).reshape(16, 3)
        return DataLoader(TensorDataset(x, x.sum(1)), batch_size=self.hparams.batch_size)

    val_dataloader = train_dataloader


def trainer(folder, **settings):
    settings = {"max_epochs": 2, "accelerator": "cpu", **settings}
    return pl.Trainer(
        **settings, default_root_dir=folder / "runs", logger=False, num_sanity_val_steps=0, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip


def keep(folder, name, **settings):
    return pl.callbacks.ModelCheckpoint(folder, filename=name, save_top_k=-1, **settings)


def adamw_onecycle(folder, name="adamw_onecycle"):
    """Saved at the end of the second epoch of three, and the weights after the third."""
    callbacks = [keep(folder, name, every_n_epochs=2), pl.callbacks.EarlyStopping("val_loss", patience=5)]
    run = trainer(folder, callbacks=callbacks, max_epochs=3)
    run.fit(Net(), Data())
    run.save_checkpoint(folder / f"{name}_went_on.ckpt", weights_only=True)


def inside_an_epoch(folder):
    trainer(folder, callbacks=[keep(folder, "inside_an_epoch", every_n_train_steps=6)]).fit(Net(), Data())


def plateau(folder):
    trainer(folder, callbacks=[keep(folder, "plateau", every_n_epochs=2)]).fit(Net(schedule="plateau"), Data())


def after_fit(folder):
    run = trainer(folder, enable_checkpointing=False)
    run.fit(Net(), Data())
    run.save_checkpoint(folder / "after_fit.ckpt")


def weights(folder):
    run = trainer(folder, enable_checkpointing=False, max_epochs=1)
    run.fit(Net(hidden=2), Data())
    run.save_checkpoint(folder / "weights.ckpt", weights_only=True)


def objects(folder):
    run = trainer(folder, enable_checkpointing=False, max_epochs=1)
    module = Net(
        hidden=2,
        path=pathlib.Path("data/points"),
        colour=Colour.RED,
        loss=Loss(2.0),
        activation=nn.functional.relu,
        make=functools.partial(Loss, weight=1.0),
        losses=[Loss(1.0), Loss(2.0)],
        device=torch.device("cpu"),
        dtype=torch.float16,
        shape=torch.Size([3, 4]),
        scale=numpy.float32(0.5),
        count=numpy.int64(7),
        table=numpy.arange(6, dtype="float64").reshape(2, 3),
        nested={"depth": 2, "loss": Loss(3.0), "widths": (4, 8)},
    )
    run.fit(module, Data())
    run.save_checkpoint(folder / "objects.ckpt")


def omegaconf(folder):
    from omegaconf import OmegaConf

    run = trainer(folder, enable_checkpointing=False, max_epochs=1)
    conf = {"hidden": 2, "lr": 0.05, "schedule": "onecycle", "total": 12, "widths": [4, 8], "twice": "${hidden}"}
    run.fit(Configured(OmegaConf.create(conf)), Data())
    run.save_checkpoint(folder / "omegaconf.ckpt")


def mixed_16(folder):
    from lightning.pytorch.plugins import MixedPrecision

    run = trainer(folder, enable_checkpointing=False, max_epochs=1, plugins=[MixedPrecision("16-mixed", "cpu")])
    run.fit(Net(hidden=2), Data())
    run.save_checkpoint(folder / "mixed_16.ckpt")


def two_optimizers(folder):
    run = trainer(folder, enable_checkpointing=False)
    run.fit(Two(), Data())
    run.save_checkpoint(folder / "two_optimizers.ckpt")


def version_1_9(folder):
    """With pytorch-lightning 1.9."""
    trainer(folder, callbacks=[keep(folder, "version_1_9", every_n_epochs=2)]).fit(Net(), Data())


def version_1_5(folder):
    """With pytorch-lightning 1.5."""
    pl.Trainer(
        max_epochs=2, logger=False, num_sanity_val_steps=0, default_root_dir=folder / "runs", weights_summary=None,
        progress_bar_refresh_rate=0, callbacks=[keep(folder, "version_1_5", every_n_epochs=2)],
    ).fit(Net(), Data().train_dataloader(), Data().val_dataloader())  # fmt: skip


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1]).resolve()
    for name in sys.argv[2:] or [
        *("adamw_onecycle", "inside_an_epoch", "plateau", "after_fit", "weights", "objects", "omegaconf", "mixed_16"),
        "two_optimizers",
    ]:
        torch.manual_seed(1)
        globals()[name](folder)
