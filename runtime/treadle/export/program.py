"""A module as torch's exporter traces it, with the names and shapes of what goes in and comes out."""

from __future__ import annotations

import copy
import io
import logging
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import GraphModule, Node
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_unflatten

from treadle.errors import ConfigError, ModuleError
from treadle.estimating.copying import reason
from treadle.export.example import Example
from treadle.export.manifest import BATCH, TensorSpec
from treadle.module import class_name
from treadle.strategies.sharding import is_sharded


@dataclass(frozen=True)
class Program:
    exported: ExportedProgram
    """Without what is in its graph about the machine, the source code and the data it was traced with."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    symbol: str | None
    """torch's for the size of the batch; None where it is fixed."""


def frozen(module: nn.Module) -> nn.Module:
    """A copy to be exported: on the CPU, in eval mode, without gradients and without the run. It shares the memory of
    parameters that lie on the CPU, and nothing else.

    Raises:
        ConfigError: Its parameters lie in parts on several ranks.
        ModuleError: It holds what can't be copied.
    """
    attributes = (value for part in module.modules() for value in vars(part).values() if isinstance(value, Tensor))
    made: dict[int, Any] = {}
    for tensor in chain(module.parameters(), module.buffers(), attributes):
        if is_sharded(tensor):
            raise ConfigError(
                f"{class_name(module)} lies in parts on several ranks.",
                why="an exported file is of whole weights.",
                fix="export its checkpoint: python -m my_project export --ckpt_path last",
            )
        if isinstance(tensor, nn.Parameter):
            made[id(tensor)] = nn.Parameter(tensor.detach().cpu(), requires_grad=False)
        else:
            made[id(tensor)] = tensor.detach().to("cpu", copy=True)
    try:
        return copy.deepcopy(module, made).eval()
    except Exception as error:
        raise ModuleError(
            f"{class_name(module)} can't be copied: {type(error).__name__}: {error}.",
            why="what is exported is a copy of it, so that it stays as it is.",
            fix="keep what can't be copied (locks, files, results with gradients) out of the module.",
        ) from error


def program_of(module: nn.Module, example: Example) -> Program:
    """
    Args:
        module: Of :func:`frozen`.

    Raises:
        ModuleError: torch can't export it, or it returns something else than tensors.
    """
    traced = example.of_size(2) if example.batch_size == 1 else example  # a size of 1 would be taken for a constant
    shapes: Any = ShapesCollection()  # which the signature of export leaves out
    if traced.batch_size is not None:
        batch = Dim(BATCH)
        for tensor in traced.tensors:
            if traced.is_batched(tensor):
                shapes[tensor] = {0: batch}
    kept = io.StringIO()
    try:
        with (
            quiet("torch.fx.experimental.symbolic_shapes", "torch._subclasses.fake_tensor"),
            redirect_stderr(
                kept
            ),  # where a failure has torch print its graph so far; what else comes there is passed on
            warnings.catch_warnings(),
        ):
            # Of layers that keep their weights in a list besides, such as LSTM. The result is compared afterwards.
            warnings.filterwarnings("ignore", r"(?s)The tensor attributes? .* (was|were) assigned during export")
            exported = torch.export.export(
                module, traced.args, traced.kwargs, dynamic_shapes=shapes if traced.batch_size is not None else None
            )
    except Exception as error:
        raise _not_exported(module, error, traced) from error
    sys.stderr.write(kept.getvalue())
    _scrub(exported)
    return _described(module, exported, batched=traced.batch_size is not None)


@contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Without what these log, to people who work on torch."""
    chosen = [logging.getLogger(name) for name in loggers]
    before = [logger.disabled for logger in chosen]
    for logger in chosen:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in zip(chosen, before, strict=True):
            logger.disabled = disabled


def _scrub(exported: ExportedProgram) -> None:
    """Leave out the batch it was traced with, the paths and lines of the code, and guards, which are code themselves."""
    exported.example_inputs = None
    exported._guards_code = []
    for graph in exported.graph_module.modules():
        if isinstance(graph, GraphModule):
            for node in graph.graph.nodes:
                node.meta = {name: value for name, value in node.meta.items() if name == "val"}


def _described(module: nn.Module, exported: ExportedProgram, *, batched: bool) -> Program:
    values = {node.name: node.meta.get("val") for node in exported.graph.nodes}
    signature = exported.graph_signature
    given = [spec.arg.name for spec in signature.input_specs if spec.kind is InputKind.USER_INPUT]
    sizes = [size for name in given for size in values[name].shape if isinstance(size, torch.SymInt)]
    symbol = str(sizes[0]) if batched and sizes else None
    (output,) = (node for node in exported.graph.nodes if node.op == "output")
    results = [
        result
        for result, spec in zip(output.args[0], signature.output_specs, strict=True)
        if spec.kind is OutputKind.USER_OUTPUT
    ]
    outputs = []
    for name, result in zip(_output_names(exported), results, strict=True):
        value = result.meta.get("val") if isinstance(result, Node) else result
        if isinstance(value, Tensor):
            outputs.append(_spec(name, value, symbol))
        elif value is not None:
            raise ModuleError(
                f"forward of {class_name(module)} returns a {type(value).__name__} as {name!r}.",
                why="what is exported is a function from tensors to tensors.",
                fix="return tensors alone, in tuples, lists and dicts.",
            )
    if not outputs:
        raise ModuleError(
            f"forward of {class_name(module)} returns no tensor.",
            why="what is exported is a function from tensors to tensors.",
            fix="return what it computes.",
        )
    return Program(exported, tuple(_spec(name, values[name], symbol) for name in given), tuple(outputs), symbol)


def _output_names(exported: ExportedProgram) -> list[str]:
    """By keys and places in what ``forward`` returns; ``output`` for one that is alone."""
    structure = exported.call_spec.out_spec
    assert structure is not None
    leaves, _ = tree_flatten_with_path(tree_unflatten(range(structure.num_leaves), structure))
    names: list[str] = []
    for path, _ in leaves:
        words = re.findall(r"\w+", keystr(path))
        name = "_".join(words) if words and not words[0][0].isdigit() else "_".join(["output", *words])
        while name in names:
            name += "_"
        names.append(name)
    return names


def _spec(name: str, value: Tensor, symbol: str | None) -> TensorSpec:
    shape: Sequence[int | str] = [
        size if type(size) is int else re.sub(rf"\b{symbol}\b", BATCH, str(size)) for size in value.shape
    ]
    return TensorSpec(name, str(value.dtype).removeprefix("torch."), tuple(shape))


def _not_exported(module: nn.Module, error: Exception, example: Example) -> ModuleError:
    """torch's reason in one line; its advice is for those who write exporters."""
    name = class_name(module)
    text = str(error)
    if "Constraints violated" in text:
        sizes = [tuple(tensor.shape) for tensor in example.tensors]
        detail = next((line.strip(" -") for line in text.splitlines() if line.startswith("  - ")), text.splitlines()[0])
        return ModuleError(
            f"forward of {name} doesn't take any size of the batch.",
            why=f"exported with inputs of {sizes}, torch says: {detail.split('. ')[0].rstrip('.')}.",
            fix="take sizes from the input (x.shape[0], or -1) instead of numbers; or dynamic_batch=False, for the one size.",
        )
    why = reason(error.with_traceback(error.__traceback__.tb_next if error.__traceback__ else None))
    fix = "make forward out of torch's operations alone, or override it for the export."
    if "data-dependent" in text:
        fix = "choose by value with torch.where or torch.cond; take sizes from shapes, not from values."
    return ModuleError(f"forward of {name} can't be exported.", why=f"{why.rstrip('.')}.", fix=fix)
