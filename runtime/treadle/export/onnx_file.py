"""A program as ONNX: written by torch's exporter, run by onnxruntime."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from treadle.errors import CheckpointError, ModuleError
from treadle.export.manifest import BATCH, Manifest
from treadle.export.program import Program, quiet

KEY = "treadle"
"""The manifest's in the model's metadata."""

_LARGEST = 2**31 - 1
"""Bytes of one protocol buffer."""


def write(program: Program, manifest: Manifest, path: Path) -> None:
    """
    Raises:
        ModuleError: It has an operator that ONNX has none for; or its weights are more than a file can hold.
    """
    size = sum(tensor.nbytes for tensor in program.exported.state_dict.values() if isinstance(tensor, Tensor))
    if size > _LARGEST:
        raise ModuleError(
            f"{manifest.model} has {size:,} bytes of weights.",
            why="an ONNX file is one protocol buffer, which holds 2 GiB at most.",
            fix="export it as .pt2.",
        )
    try:
        # The log lists what isn't installed; the warning is about the exporter's own dependencies.
        with quiet("torch.onnx._internal.exporter._registration"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", r".*LeafSpec.* is deprecated", FutureWarning)
            exported = torch.onnx.export(
                program.exported,
                dynamo=True,
                verbose=False,
                external_data=False,
                input_names=[spec.name for spec in program.inputs],
                output_names=[spec.name for spec in program.outputs],
            )
    except Exception as error:
        raise ModuleError(
            f"{manifest.model} can't be exported to ONNX.",
            why=_reason(error),
            fix="export it as .pt2, which takes more.",
        ) from error
    assert exported is not None
    exported.model.metadata_props[KEY] = manifest.to_json()
    model: Any = exported.model_proto
    for graph in (model.graph, *model.functions):
        for node in graph.node:
            del node.metadata_props[:]  # the exporter's notes on where each comes from
    if program.symbol is not None:
        _name_batch(model.graph, program.symbol)
    path.write_bytes(model.SerializeToString())


def read(path: Path) -> tuple[Manifest, Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]]:
    """What the file says of itself, and its program on the CPU, with as many threads as torch has.

    Raises:
        CheckpointError: It is damaged, or not of treadle.
    """
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        # From memory: beside a file, the runtime would look for others that the model names.
        session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - each kind of the runtime's derives from Exception alone
        raise CheckpointError(
            f"{path} can't be loaded.",
            why=f"onnxruntime says: {_first_line(error)}.",
            fix="export the checkpoint again.",
        ) from None
    if (text := session.get_modelmeta().custom_metadata_map.get(KEY)) is None:
        raise CheckpointError(
            f"{path} was not exported by treadle.",
            why=f"a file of treadle has {KEY!r} in its metadata, and this one hasn't.",
            fix="onnxruntime.InferenceSession(path)",
        )
    manifest = Manifest.from_json(text, path)
    taken = {node.name for node in session.get_inputs()}
    names = [spec.name for spec in manifest.inputs]
    if not taken <= set(names) or [node.name for node in session.get_outputs()] != [s.name for s in manifest.outputs]:
        raise CheckpointError(
            f"{path} has other inputs or outputs than it says of itself.",
            why="its manifest was written for another model.",
            fix="export the checkpoint again.",
        )

    def compute(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        given = {name: value.detach().cpu().numpy() for name, value in zip(names, inputs, strict=True) if name in taken}
        return tuple(torch.as_tensor(value) for value in session.run(None, given))

    return manifest, compute


def _name_batch(graph: Any, symbol: str) -> None:
    """Call the size of the batch so in every shape, in place of torch's symbol for it."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = re.sub(rf"\b{symbol}\b", BATCH, size.dim_param)


def _reason(error: BaseException) -> str:
    """The innermost cause, which names the operator; the outer ones are a report of pages."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {_first_line(error)}."


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
