"""The Trainer with the names it had."""

from __future__ import annotations

from typing import final

import treadle.trainer
from treadle.module import Module


@final
class Trainer(treadle.trainer.Trainer):
    """``treadle.Trainer``, and its properties by their old names, too."""

    @property
    def lightning_module(self) -> Module | None:
        """``module``."""
        return self.module
