"""The Module with the arguments it had."""

from __future__ import annotations

from typing import Any

from treadle.module import Module


class LightningModule(Module):
    """``treadle.Module``, and its arguments by their old names, too."""

    def optimizers(self, use_pl_optimizer: bool = True) -> Any:
        return super().optimizers(use_pl_optimizer)
