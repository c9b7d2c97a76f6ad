"""The Trainer that a module and its data belong to while it runs them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from treadle.errors import ModuleError

if TYPE_CHECKING:
    from treadle.trainer import Trainer


def trainer_of(owner: object, *, use_in: str) -> Trainer:
    """The Trainer that runs ``owner``.

    Args:
        use_in: Where ``owner.trainer`` may be used, for the message.

    Raises:
        ModuleError: None does.
    """
    trainer: Trainer | None = owner.__dict__.get("_trainer")
    if trainer is None:
        raise ModuleError(
            f"{type(owner).__name__} has no trainer.",
            why="it gets one when fit, validate, test or predict is called with it.",
            fix=f"use self.trainer in {use_in} only.",
        )
    return trainer
