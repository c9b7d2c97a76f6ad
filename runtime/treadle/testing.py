"""Small real parts for tests of your own: a module, its data, a callback and a logger that remember what happened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from treadle.callbacks.base import HOOKS, Callback
from treadle.data import DataModule
from treadle.module import Module


class NoisyPoints(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """``size`` points in the plane and the sides of a line they lie on, drawn from a seed.

    An item is (its index, the point of shape (2,), its class). Reading adds noise from torch's global generator, as
    augmentation does.
    """

    def __init__(self, size: int = 20, noise: float = 0.1, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.points = torch.randn(size, 2, generator=generator)
        self.noise = noise

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        point = self.points[index]
        return torch.tensor(index), point + self.noise * torch.randn(2), (point.sum() > 0).long()


class Classifier(Module):
    """Two layers and dropout on :class:`NoisyPoints`. ``seen`` lists the indices of each batch it was trained on."""

    def __init__(self, hidden: int = 4, learning_rate: float = 0.05) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.Sequential(nn.Linear(2, hidden), nn.Tanh(), nn.Dropout(0.2), nn.Linear(hidden, 2))
        self.seen: list[list[int]] = []

    def forward(self, points: Tensor) -> Tensor:
        """Logits, shape (batch, 2), of points of shape (batch, 2)."""
        logits: Tensor = self.layers(points)
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        indices, points, classes = batch
        self.seen.append(indices.tolist())
        loss = nn.functional.cross_entropy(self(points), classes)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        _, points, classes = batch
        self.log("val_loss", nn.functional.cross_entropy(self(points), classes))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        _, points, classes = batch
        self.log("test_accuracy", (self(points).argmax(1) == classes).float().mean())

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        _, points, _ = batch
        return self(points).argmax(1)  # type: ignore[no-any-return]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.learning_rate)


class Points(DataModule):
    """:class:`NoisyPoints` in shuffled batches."""

    def __init__(self, size: int = 20, batch_size: int = 4, num_workers: int = 0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.train, self.evaluation = NoisyPoints(size), NoisyPoints(size // 2, noise=0.0, seed=1)

    def train_dataloader(self) -> DataLoader[Any]:
        options = self.hparams
        return DataLoader(self.train, options.batch_size, shuffle=True, num_workers=options.num_workers)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.evaluation, self.hparams.batch_size)

    test_dataloader = val_dataloader
    predict_dataloader = val_dataloader


class Recorder(Callback):
    """``calls`` lists the hooks that were called, in order.

    Args:
        only: The hooks to record; default: all.
    """

    def __init__(self, *only: str) -> None:
        self.calls: list[str] = []
        for hook in only or HOOKS:
            setattr(self, hook, self._record(hook))

    def _record(self, hook: str) -> Any:
        return lambda *_: self.calls.append(hook)


class MemoryLogger:
    """``rows`` lists what was logged: one dict for each row, with its step."""

    log_dir: Path | None = None

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.params: dict[str, Any] = {}
        self.status: str | None = None
        self.saves = 0

    def start_run(self) -> None:
        pass

    def resume_in(self, folder: Path) -> None:
        pass

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.rows.append({"step": step, **metrics})

    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        self.params.update(params)

    def save(self) -> None:
        self.saves += 1

    def finalize(self, status: Literal["success", "failed"]) -> None:
        self.status = status

    def state_dict(self) -> dict[str, Any]:
        return {"rows": [dict(row) for row in self.rows]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = [dict(row) for row in state["rows"]]
