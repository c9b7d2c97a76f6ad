"""Checkpoints that PyTorch Lightning wrote: read without importing, making or calling anything that they name."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, final
from zipfile import BadZipFile

import torch

from treadle.checkpoint.archive import Archive
from treadle.checkpoint.pickled import Malformed, described
from treadle.checkpoint.rebuilding import Rebuilding
from treadle.checkpoint.state import FORMAT, Checkpoint
from treadle.errors import CheckpointError
from treadle.progress import Progress
from treadle.version import __version__

VERSION = "pytorch-lightning_version"
_HYPER_PARAMETERS = ("hyper_parameters", "hparams", "module_arguments")
"""The newest name first; the others are those of 0.x."""
_SCALERS = (
    *("MixedPrecision", "MixedPrecisionPlugin", "NativeMixedPrecisionPlugin"),
    *("native_amp_scaling_state", "amp_scaling_state"),
)
_CLI = ("_instantiator", "_class_path")
"""Hyperparameters that its command line adds: what would be imported and called to make the module."""
_SHOWN = 8
_DAMAGE = (BadZipFile, zlib.error, struct.error, OSError, EOFError, NotImplementedError, RuntimeError, ValueError)
"""What reading a damaged zip may raise. (RuntimeError: also of a recursion too deep.)"""


@final
@dataclass(frozen=True, kw_only=True)
class LightningCheckpoint:
    """What a checkpoint of PyTorch Lightning holds, as tensors and plain values."""

    path: Path
    lightning_version: str
    epoch: int
    """As it was saved: the epoch it was saved in, or after. See ``next_epoch``."""
    global_step: int
    """As it was saved: steps of all optimizers together."""
    state_dict: dict[str, Any]
    hyper_parameters: dict[str, Any]
    hparams_argument: str | None
    """The argument of ``__init__`` that was all hyperparameters in one."""
    datamodule_hyper_parameters: dict[str, Any]
    optimizer_states: list[dict[str, Any]]
    """Empty in one that was saved with ``save_weights_only``."""
    lr_schedulers: list[dict[str, Any]]
    precision: dict[str, Any]
    """The state of the gradient scaler of ``"16-mixed"``; empty for any other precision."""
    callbacks: dict[str, Any]
    loops: dict[str, Any]
    entries: dict[str, Any]
    """Everything under its own name, also what ``on_save_checkpoint`` added."""
    left_out: dict[str, str]
    """Where something was that can't be read safely, as ``hyper_parameters['loss']``, and what it was."""
    changed: dict[str, str]
    """The same, for what was read as another type."""

    @property
    def next_epoch(self) -> int:
        """The index of the epoch after the one it was saved in."""
        if _release(self.lightning_version) < (1, 6):
            return self.epoch  # counted from one then
        ready = self.counter("epoch_progress", "current", "ready")
        return self.epoch + 1 if ready is None else ready

    @property
    def epoch_is_whole(self) -> bool | None:
        """Whether all batches of that epoch were trained on. None: it doesn't say, being older than 1.6."""
        ready, done = (self.counter("epoch_progress", "current", key) for key in ("ready", "processed"))
        if ready is None or done is None or _release(self.lightning_version) < (1, 6):
            return None
        batches = self.loops.get("fit_loop", {}).get("epoch_loop.batch_progress")
        return done >= ready or (isinstance(batches, dict) and batches.get("is_last_batch") is True)

    def counter(self, *keys: str) -> int | None:
        """A number of its fit loop; None if there is none."""
        found: Any = self.loops.get("fit_loop")
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        return found if type(found) is int and 0 <= found < 2**62 else None

    def weights(self) -> Checkpoint:
        """A checkpoint of ours, with all but what continuing takes; the other entries are there by their own names."""
        progress = Progress(epoch=self.next_epoch, global_step=self.global_step)
        ours = Checkpoint(
            format=FORMAT,
            treadle_version=__version__,
            epoch=progress.last_epoch,
            global_step=self.global_step,
            progress=progress.state_dict(),
            state_dict=self.state_dict,
            hparams_name="the LightningModule",
            hyper_parameters=self.hyper_parameters,
        )
        if self.hparams_argument is not None:
            ours["hparams_argument"] = self.hparams_argument
        return cast(Checkpoint, {**self.entries, **ours})

    def omissions(self, given: Collection[str] = (), of: Collection[str] = ("state_dict", "hyper_parameters")) -> str:
        """A sentence on what did not come through, or nothing.

        Args:
            given: Hyperparameters that don't matter, being passed by hand.
            of: The entries that matter.
        """
        mute = {f"hyper_parameters[{name!r}]" for name in given}
        parts = [
            (what, [f"{at} ({was})" for at, was in where.items() if at.split("[")[0] in of and at not in mute])
            for what, where in (("Left out", self.left_out), ("Changed", self.changed))
        ]
        said = [f"{what}: {_shortened(items)}" for what, items in parts if items]
        if not said:
            return ""
        return f"{self.path} is PyTorch Lightning's, of which tensors and plain values are read. {'. '.join(said)}."


def written_by_lightning(path: Path) -> bool:
    """Whether ``path`` is a whole checkpoint file of PyTorch Lightning. Reads what is in it, and no tensor."""
    try:
        with Archive(path) as archive:
            return f"{VERSION}".encode() in archive.pickle()
    except (*_DAMAGE, MemoryError):
        return False


def refusal(path: Path) -> CheckpointError:
    """What to say where a run can't go on from ``path``, which is PyTorch Lightning's."""
    return CheckpointError(
        f"{path} was written by PyTorch Lightning.",
        why="it lacks what continuing exactly takes: the generators, and the position in the data.",
        fix=f"python -m treadle.lightning convert {path} new.ckpt, then ckpt_path=new.ckpt, to go on with the next epoch; "
        "MyModule.load_from_checkpoint(path) for the weights alone.",
    )


def read_lightning(path: Path, map_location: str | torch.device = "cpu") -> LightningCheckpoint:
    """The checkpoint of PyTorch Lightning in ``path``, its tensors on ``map_location``.

    No class or function that the file names is imported, made or called. Tensors, numbers, text, lists, dicts, sets,
    torch's dtypes and devices and numpy's numbers come through; paths as text, arrays as tensors, namespaces and
    omegaconf's containers as dicts and lists. The rest is left out, and named.

    Raises:
        CheckpointError: No such file, a damaged one, one that is not Lightning's, or one made to do harm.
    """
    torch.empty(0, device=map_location)  # a device that is not there is no fault of the file
    _require_archive(path)
    try:
        with Archive(path, map_location) as archive:
            rebuilding = Rebuilding(archive)
            entries = rebuilding.everything(described(archive.pickle()))
            return _laid_out(path, entries, rebuilding)
    except Malformed as error:
        raise CheckpointError(
            f"{path} is not a checkpoint that can be read.",
            why=f"{error}.",
            fix="ask where it comes from, and take another one.",
        ) from None
    except (*_DAMAGE, MemoryError) as error:
        raise CheckpointError(
            f"{path} is damaged: its {path.stat().st_size:,} bytes are not a whole checkpoint.",
            why=f"reading it says: {(str(error).strip() or type(error).__name__).splitlines()[0]}.",
            fix="take another copy of it, or an older one.",
        ) from None


def _require_archive(path: Path) -> None:
    if path.is_dir():
        raise CheckpointError(
            f"{path} is a folder.",
            why="Lightning writes one for FSDP and DeepSpeed, with a part of the weights in each file.",
            fix=f"python -m lightning.pytorch.utilities.consolidate_checkpoint {path}, where Lightning is installed; then "
            "the file that it writes.",
        )
    if not path.is_file():
        raise CheckpointError(f"{path} is not there.", why="no such file.", fix="give the path of a .ckpt file.")
    with path.open("rb") as file:
        start = file.read(2)
    if start != b"PK":
        raise CheckpointError(
            f"{path} is not a zip archive.",
            why="torch.save writes those since torch 1.6; the pickles that it wrote before are not read.",
            fix="if you trust it: torch.save(torch.load(path, weights_only=False), new_path), and read that.",
        )


def _laid_out(path: Path, entries: dict[Any, Any], rebuilding: Rebuilding) -> LightningCheckpoint:
    left_out = {at: was for at, was in rebuilding.left_out.items() if at != "hparams_type"}
    version = entries.get(VERSION)
    if not isinstance(version, str) and "treadle_version" in entries:
        raise CheckpointError(
            f"{path} was written by treadle.",
            why="it can be used as it is.",
            fix=f"trainer.fit(model, ckpt_path={str(path)!r})",
        )
    if not isinstance(version, str):
        raise CheckpointError(
            f"{path} was not written by PyTorch Lightning.",
            why=f"such a file has a {VERSION}, and this one has none.",
            fix="for bare weights use model.load_state_dict(torch.load(path, weights_only=True)).",
        )
    if not isinstance(entries.get("state_dict"), dict):
        was = left_out.get("state_dict", "not there")
        raise Malformed(f"its state_dict is {was}")
    epoch, step = entries.get("epoch"), entries.get("global_step")
    if any(type(number) is not int or not 0 <= number < 2**62 for number in (epoch, step)):
        raise Malformed("its epoch or its global_step is no number of them")
    named = next((key for key in _HYPER_PARAMETERS if key in entries), _HYPER_PARAMETERS[0])
    settings = {name: value for name, value in _dict(entries, named).items() if name not in _CLI}
    argument = entries.get("hparams_name")
    return LightningCheckpoint(
        path=path,
        lightning_version=version,
        epoch=cast(int, epoch),
        global_step=cast(int, step),
        state_dict=entries["state_dict"],
        hyper_parameters=settings,
        hparams_argument=argument if isinstance(argument, str) and argument != "kwargs" else None,
        datamodule_hyper_parameters=_dict(entries, "datamodule_hyper_parameters"),
        optimizer_states=_dicts(entries, "optimizer_states"),
        lr_schedulers=_dicts(entries, "lr_schedulers"),
        precision=next((_dict(entries, key) for key in _SCALERS if key in entries), {}),
        callbacks={key: state for key, state in _dict(entries, "callbacks").items() if isinstance(key, str)},
        loops=_dict(entries, "loops"),
        entries={key: value for key, value in entries.items() if isinstance(key, str)},
        left_out=left_out,
        changed=dict(rebuilding.changed),
    )


def _dict(entries: Mapping[Any, Any], key: str) -> dict[Any, Any]:
    found = entries.get(key)
    return found if isinstance(found, dict) else {}


def _dicts(entries: Mapping[Any, Any], key: str) -> list[dict[str, Any]]:
    found = entries.get(key, [])
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise Malformed(f"its {key} are no list of dicts")
    return found


def _release(version: str) -> tuple[int, ...]:
    """Major and minor; that of a later one if it can't be told."""
    numbers = version.split(".")[:2]
    return (
        tuple(map(int, numbers)) if len(numbers) == 2 and all(n.isdecimal() and len(n) < 6 for n in numbers) else (9,)
    )


def _shortened(items: list[str]) -> str:
    more = f", and {len(items) - _SHOWN:,} more" if len(items) > _SHOWN else ""
    return ", ".join(item if len(item) <= 300 else f"{item[:300]}..." for item in items[:_SHOWN]) + more
