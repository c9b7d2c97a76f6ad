"""A generative adversarial network: two optimizers, stepped by the module itself.

With ``automatic_optimization = False`` the loop calls ``training_step`` and leaves the steps to it. What the Trainer is
told still holds: gradients are clipped and accumulated as it says, and a step is counted for each batch in which any
optimizer stepped.

    python examples/gan.py
    python examples/gan.py --gradient_clip_val 1.0 --accumulate_grad_batches 2

The measure is the Fréchet distance of generated digits to digits kept aside, by mean and covariance of their pixels.
Expect about 2.3. An untrained generator is at 44, one that only makes the mean of all digits at 19, real digits at 0.3.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.utils.data import DataLoader, TensorDataset

import treadle
from treadle.callbacks import ModelCheckpoint
from treadle.loggers import CSVLogger

Batch = tuple[Tensor]
"""Images, shape (batch, 64), from -1 (paper) to 1 (ink)."""


class Gan(treadle.Module):
    """A generator and a discriminator, each three layers deep."""

    automatic_optimization = False

    def __init__(self, latent: int = 16, hidden: int = 128, learning_rate: float = 5e-4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.generator = nn.Sequential(
            nn.Linear(latent, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, 64),
            nn.Tanh(),
        )
        self.discriminator = nn.Sequential(
            nn.Linear(64, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, 1)
        )

    def forward(self, count: int) -> Tensor:
        """New images, shape (count, 64)."""
        images: Tensor = self.generator(torch.randn(count, self.hparams.latent, device=self.device))
        return images

    def training_step(self, batch: Batch) -> None:
        (real,) = batch
        of_generator, of_discriminator = self.optimizers()
        fake = self(len(real))

        # A step in one call: clear the gradients, backward into this optimizer's parameters and no others, clip, step.
        judge = self.discriminator
        discriminator_loss = (softplus(-judge(real)) + softplus(judge(fake.detach()))).mean()
        of_discriminator.step(discriminator_loss)

        # The same spelled out, as for Lightning.
        with of_generator.toggle_model():
            generator_loss = softplus(-judge(fake)).mean()
            of_generator.zero_grad()
            self.manual_backward(generator_loss)
            of_generator.step()

        self.log_dict({"generator_loss": generator_loss, "discriminator_loss": discriminator_loss})

    def validation_step(self, batch: Batch) -> None:
        (real,) = batch
        self.log("frechet_distance", frechet_distance(real, self(4 * len(real))), prog_bar=True)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        networks, rate = (self.generator, self.discriminator), self.hparams.learning_rate
        return [torch.optim.Adam(network.parameters(), rate, betas=(0.5, 0.99)) for network in networks]


def frechet_distance(one: Tensor, other: Tensor) -> Tensor:
    """Between the normal distributions that fit two sets of images best.

    Source:
        Dowson and Landau 1982, equation 4; Heusel et al. 2017, arXiv:1706.08500, with pixels for features.
    """
    apart = (one.mean(0) - other.mean(0)).square().sum()
    covariance, other_covariance = one.T.cov(), other.T.cov()
    shared = torch.linalg.eigvals(covariance @ other_covariance).real.clamp(min=0).sqrt().sum()
    distance: Tensor = apart + covariance.trace() + other_covariance.trace() - 2 * shared
    return distance


def main(arguments: Sequence[str] | None = None) -> treadle.Trainer:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_steps", type=int, default=2000)
    parser.add_argument("--accumulate_grad_batches", type=int, default=1)
    parser.add_argument("--gradient_clip_val", type=float)
    parser.add_argument("--folder", default="runs", help="where the run's files go")
    args = parser.parse_args(arguments)

    treadle.seed_everything(0)
    images = torch.tensor(load_digits().data, dtype=torch.float32) / 8 - 1
    order = torch.randperm(len(images))
    train = DataLoader(TensorDataset(images[order[:-600]]), batch_size=64, shuffle=True, drop_last=True)
    validation = DataLoader(TensorDataset(images[order[-600:]]), batch_size=600)
    trainer = treadle.Trainer(
        max_steps=args.max_steps,
        accumulate_grad_batches=args.accumulate_grad_batches,
        gradient_clip_val=args.gradient_clip_val,
        check_val_every_n_epoch=5,
        callbacks=ModelCheckpoint(monitor="frechet_distance"),
        logger=CSVLogger(args.folder, name="gan"),
    )
    trainer.fit(Gan(), train, validation)
    trainer.validate(dataloaders=validation)  # the best that was kept
    return trainer


if __name__ == "__main__":
    main()
