"""Where a stage's batches come from."""

from __future__ import annotations

from typing import Any

from treadle.collectives import Ranks
from treadle.data import DataModule
from treadle.data.parallel import Shared
from treadle.data.stream import Batches, StreamState, evaluation_streams, training_stream
from treadle.errors import ModuleError
from treadle.loops.settings import Limits
from treadle.module import Module, overrides
from treadle.seeding import RNGState, capture_rng, isolated_rng, restore_rng

METHODS = {
    "train": "train_dataloader",
    "val": "val_dataloader",
    "test": "test_dataloader",
    "predict": "predict_dataloader",
}


class Loaders:
    """The loaders of one call of the Trainer: asked for when they are first needed, and again when they are to be made
    anew.

    Args:
        module: Asked for loaders where neither of the others has them.
        datamodule: Asked first.
        given: What the user passed to the call, by the kinds that it needs; comes before both.
        limits: How many batches of each to use.
        shared: The ranks that read them together; None: this one reads all.
        ranks: All of them: what the user's code draws while it makes a loader is rank 0's on each.
        index: Of this rank's share of the data: those with the first go on from what was drawn, as rank 0 does.
    """

    def __init__(
        self,
        module: Module,
        datamodule: DataModule | None,
        given: dict[str, Any],
        limits: Limits,
        shared: Shared | None,
        ranks: Ranks,
        index: int,
    ) -> None:
        self.module, self.datamodule, self.given, self.limits = module, datamodule, given, limits
        self.shared, self.ranks, self.index = shared, ranks, index
        self.ready = False
        """The data are set up: loaders may be asked for."""
        self.asked_at: dict[str, RNGState] = {}
        """The generators when loaders were asked for: in a resumed run the user's code draws the same for them."""
        self._resume: StreamState | None = None
        self._resume_val: list[StreamState] = []
        self.streams: dict[str, list[Batches]] = {}
        self._loaders: dict[str, Any] = {}

    @property
    def train(self) -> Batches:
        if "train" not in self.streams:
            in_order = bool(self.limits.overfit)
            stream = training_stream(
                self._loader("train"),
                limit=self.limits.of("train"),
                name="the train loader",
                in_order=in_order,
                shared=self.shared,
            )
            if self._resume is not None:
                stream.load_state_dict(self._resume)
            self.streams["train"] = [stream]
        return self.streams["train"][0]

    def resume(self, train: StreamState, val: list[StreamState]) -> None:
        """The data stood there when the run was saved."""
        self._resume, self._resume_val = train, val
        for stream in self.streams.get("train", []):
            stream.load_state_dict(train)
        for stream, state in zip(self.streams.get("val", []), val, strict=False):
            stream.load_state_dict(state)

    def position(self) -> StreamState | None:
        """Where the training data stands; None before it is known."""
        return self.streams["train"][0].state_dict() if "train" in self.streams else self._resume

    @property
    def val(self) -> list[Batches]:
        """None while fitting if there is no loader or no step for it."""
        return self.evaluation("val") if self.validates else []

    @property
    def validates(self) -> bool:
        """Whether a fit has anything to validate with."""
        source, base = (self.module, Module) if self.datamodule is None else (self.datamodule, DataModule)
        brings_one = overrides(source, "val_dataloader", base)
        return self.limits.of("val") != 0 and (self.given.get("val") is not None or brings_one)

    def evaluation(self, kind: str) -> list[Batches]:
        """One for each loader of ``val``, ``test`` or ``predict``."""
        if kind not in self.streams:
            with isolated_rng():  # in a resumed run they are made at another moment
                loader = self._loader(kind)
            streams = evaluation_streams(
                loader, limit=self.limits.of(kind), name=f"the {kind} loader", shared=self.shared
            )
            if kind == "val" and len(streams) == len(self._resume_val):
                for stream, state in zip(streams, self._resume_val, strict=True):
                    stream.load_state_dict(state)
            self.streams[kind] = streams
        return self.streams[kind]

    def forget(self, kind: str) -> None:
        """The next to need it makes it anew, if it is not one that was passed."""
        if kind == "val":
            self._resume_val = []
        self._resume = None
        self.asked_at.pop(kind, None)
        for stream in self.streams.pop(kind, []):
            stream.close()
        self._loaders.pop(kind, None)

    def close(self) -> None:
        for streams in self.streams.values():
            for stream in streams:
                stream.close()

    def loader(self, kind: str) -> Any:
        """What the user's code returned or passed; None before it was asked."""
        return self._loaders.get(kind)

    def lengths(self, kind: str) -> list[int | float]:
        """Batches of each loader; infinity if it can't tell. Empty for a kind that the call doesn't need."""
        if not self.ready or kind not in self.given:
            return []
        streams = [self.train] if kind == "train" else self.val if "train" in self.given else self.evaluation(kind)
        return [float("inf") if stream.length is None else stream.length for stream in streams]

    def _loader(self, kind: str) -> Any:
        loader = self.given.get(kind)
        if loader is None:
            source = self.module if self.datamodule is None else self.datamodule
            own = capture_rng()
            if kind in self.asked_at:
                restore_rng(self.asked_at[kind])
            else:
                self.asked_at[kind] = self.ranks.broadcast(own)
                if self.ranks.rank:
                    restore_rng(self.asked_at[kind])
            loader = getattr(source, METHODS[kind])()
            if self.index:
                restore_rng(own)
            if loader is None:
                raise ModuleError(
                    f"{type(source).__name__}.{METHODS[kind]} returned None.",
                    why="this run reads batches from it.",
                    fix="return a DataLoader or any iterable of batches.",
                )
        self._loaders[kind] = loader
        return loader
