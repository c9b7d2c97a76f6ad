"""What ``python -m my_project export`` does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treadle.callbacks import WeightAveraging
from treadle.checkpoint import Checkpoint, read
from treadle.export.exporting import ATOL, RTOL, Written, export
from treadle.export.formats import Format, format_for, require_packages
from treadle.loops.checkpointing import Checkpointing
from treadle.module import Module, load_weights

if TYPE_CHECKING:
    from treadle.data import DataModule
    from treadle.trainer import Trainer


SETTINGS = ("ckpt_path", "output", "format", "atol", "rtol", "dynamic_batch")
"""On the command line; the first is every verb's."""


def add_settings(parser: Any) -> None:
    """Those of this verb alone."""
    parser.add_argument(
        "--output", type=str | None, default=None, help="A .pt2, .onnx or .safetensors file. Default: model.pt2."
    )
    parser.add_argument(
        "--format", type=str | None, default=None, help="torch.export, onnx or safetensors; default: by the suffix."
    )
    parser.add_argument("--atol", type=float, default=ATOL, help="Outputs may differ by so much, ...")
    parser.add_argument("--rtol", type=float, default=RTOL, help="... and by this part of their own size.")
    parser.add_argument("--dynamic_batch", type=bool, default=True, help="The batch may have any size.")


def export_checkpoint(
    trainer: Trainer,
    module: Module,
    data: DataModule,
    *,
    ckpt_path: str | os.PathLike[str] | None,
    output: str | os.PathLike[str] | None = None,
    format: str | None = None,  # noqa: A002 - the field's name for it
    **settings: Any,
) -> Written:
    """:func:`export` with the weights that ``Trainer.predict(ckpt_path=...)`` would take: averaged ones where a callback
    of ``trainer`` averages.

    Args:
        trainer: Knows where its runs lie; nothing is run.
        module: Gets the weights. Without ``ckpt_path`` it keeps those it has.
        data: Gives the example.
        output: Default: ``model`` with the suffix of ``format``, in the working directory.

    Raises:
        TreadleError: As :func:`export`; there is no such checkpoint.
    """
    if output is None:
        output = f"model{next((kind.suffix for kind in Format if kind.value == format), '.pt2')}"
    require_packages(format_for(Path(output), format), to="write")  # before anything large is read
    files = Checkpointing(trainer.fabric, trainer.loggers, trainer.checkpoint_callbacks, trainer.default_root_dir)
    path, _ = files.find_path(ckpt_path, resume=False)
    module.configure_model()
    if path is not None:
        checkpoint = read(path)
        module.on_load_checkpoint(checkpoint)  # type: ignore[arg-type]  # what it changes there is what is loaded
        load_weights(module, _as_predicted(trainer, checkpoint))
        if "datamodule" in checkpoint:
            data.load_state_dict(checkpoint["datamodule"])
    return export(module, output, format=format, data=data, checkpoint=path, **settings)


def _as_predicted(trainer: Trainer, checkpoint: Checkpoint) -> Checkpoint:
    for callback in trainer.callbacks:
        if isinstance(callback, WeightAveraging) and callback.checkpoint_key in checkpoint:
            averaged: Any = checkpoint[callback.checkpoint_key]  # type: ignore[literal-required]
            if averaged["updates"]:
                checkpoint["state_dict"] = {**checkpoint["state_dict"], **averaged["state_dict"]}
    return checkpoint
