"""The model card beside exported weights: what they are, where they come from, how to load them."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from treadle.checkpoint import Checkpoint
from treadle.export.manifest import Manifest
from treadle.hyperparameters import HasHyperParameters
from treadle.module import Module, class_name, overrides

_SEAL = re.compile(r"\n<!-- written by treadle export; once edited, it stays as it is \((\w+)\) -->\n\Z")


def write_card(weights: Path, module: nn.Module, manifest: Manifest, checkpoint: Checkpoint | None) -> Path | None:
    """Write ``model.md`` beside ``model.safetensors``. None, and nothing is touched, if somebody has changed the one that
    is there."""
    path = weights.with_suffix(".md")
    if path.exists() and not _is_ours(path):
        return None
    text = _card(weights, module, manifest, checkpoint)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(
            f"{text}\n<!-- written by treadle export; once edited, it stays as it is ({_digest(text)}) -->\n", "utf-8"
        )
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _is_ours(path: Path) -> bool:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    seal = _SEAL.search(text)
    return seal is not None and seal[1] == _digest(text[: seal.start()])


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _card(weights: Path, module: nn.Module, manifest: Manifest, checkpoint: Checkpoint | None) -> str:
    state = module.state_dict()
    count = sum(parameter.numel() for parameter in module.parameters())
    hyperparameters = dict(module.hparams) if isinstance(module, HasHyperParameters) else {}
    facts: dict[str, Any] = {
        "class": f"{type(module).__module__}.{manifest.model}",
        "parameters": f"{count:,} in {len(state)} tensors (with buffers)",
        "written by": f"treadle {manifest.treadle_version}, torch {manifest.torch_version}",
    }
    if checkpoint is not None:
        facts["from"] = f"{manifest.created_from}, epoch {manifest.epoch}, step {manifest.global_step}"
    parts = [
        f"# {manifest.model}",
        _table(facts),
        "## How to load it",
        _loading(weights, module, hyperparameters),
        *_section("Hyperparameters", hyperparameters),
    ]
    if checkpoint is not None:
        parts += _section("Metrics", checkpoint.get("results", {}).get("values", {}))
        lineage = checkpoint.get("lineage")
        parts += _section("Lineage", lineage if isinstance(lineage, Mapping) else {})
    return "\n\n".join(parts) + "\n"


def _section(title: str, values: Mapping[str, Any]) -> list[str]:
    return [f"## {title}", _table(values)] if values else []


def _table(values: Mapping[str, Any]) -> str:
    rows = "\n".join(f"| {_cell(name)} | {_cell(value)} |" for name, value in values.items())
    return f"| | |\n| --- | --- |\n{rows}"


def _cell(value: Any) -> str:
    """On one line, without what would end the cell or start a tag."""
    if isinstance(value, Tensor):
        value = value.item() if value.numel() == 1 else value.tolist()
    if isinstance(value, (dict, list, tuple)):
        text = json.dumps(value, default=str)
    else:
        text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;")


def _loading(weights: Path, module: nn.Module, hyperparameters: dict[str, Any]) -> str:
    name = class_name(module)
    arguments = ", ".join(f"{key}={value!r}" for key, value in hyperparameters.items() if key.isidentifier())
    where = type(module).__module__
    lines = [
        "```python",
        "from safetensors.torch import load_model",
        f"from {where} import {name}" if where != "__main__" else f"# and {name}, from the script that trained it",
        "",
        f"module = {name}({arguments})",
        *(["module.configure_model()"] if isinstance(module, Module) and overrides(module, "configure_model") else []),
        f'load_model(module, "{weights.name}")',
        "module.eval()",
        "```",
    ]
    return "\n".join(lines)
