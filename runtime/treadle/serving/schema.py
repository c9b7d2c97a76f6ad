"""From a manifest: what a request must look like, as a pydantic model; from its JSON to tensors, and back."""

from __future__ import annotations

import math
from typing import Annotated, Any, final

import torch
from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError, create_model
from pydantic_core import from_json, to_json

from treadle.errors import ConfigError, nearest
from treadle.export import Manifest, TensorSpec
from treadle.serving.batching import Tensors
from treadle.serving.limits import Limits
from treadle.serving.refusals import Refusal

_FLOATS = ("float16", "bfloat16", "float32", "float64")
_INTEGERS = ("uint8", "int8", "int16", "int32", "int64")
_LONGEST_EXAMPLE = 256  # numbers; an image would bury the page


@final
class Schema:
    """Of the requests and answers of one model.

    Raises:
        ConfigError: The model can't be served.
    """

    def __init__(self, manifest: Manifest, limits: Limits) -> None:
        _check_servable(manifest)
        self.manifest = manifest
        self._max_batch = limits.max_batch
        self._request = _model("Request", "inputs", manifest.inputs, limits.max_batch)
        self._response = _model("Response", "outputs", manifest.outputs, limits.max_batch)

    def read(self, body: bytes) -> Tensors:
        """The inputs in a request's body, in the manifest's order.

        Raises:
            Refusal: It is no JSON (400), or not what the model takes (422).
        """
        try:
            found = from_json(body)
        except ValueError as error:
            raise Refusal(400, f"the body is no JSON: {error}.") from None
        try:
            self._request.model_validate(found)
        except ValidationError as error:
            raise self._refusal(found, error) from None
        inputs = tuple(self._tensor(spec, found["inputs"][spec.name]) for spec in self.manifest.inputs)
        sizes = [len(values) for values in inputs]
        for spec, size in zip(self.manifest.inputs, sizes, strict=True):
            if size != sizes[0]:
                raise self._about(spec, f"batch {size}, but batch {sizes[0]} for {self.manifest.inputs[0].name!r}")
        return inputs

    def write(self, outputs: Tensors) -> bytes:
        """The body of an answer.

        Raises:
            Refusal: An output is not finite, for which JSON has no number (500).
        """
        for spec, values in zip(self.manifest.outputs, outputs, strict=True):
            if values.is_floating_point() and not values.isfinite().all():
                raise Refusal(
                    500, f"output {spec.name!r} is not finite for these inputs, and JSON has no number for that."
                )
        named = zip(self.manifest.outputs, outputs, strict=True)
        return to_json({"outputs": {spec.name: values.tolist() for spec, values in named}})

    def openapi(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The JSON schemas of a request and an answer; with an example if it is short enough."""
        return (
            _described(self._request, "inputs", self.manifest.inputs),
            _described(self._response, "outputs", self.manifest.outputs),
        )

    def _tensor(self, spec: TensorSpec, values: list[Any]) -> torch.Tensor:
        made = torch.tensor(values, dtype=spec.torch_dtype)
        if made.is_floating_point() and not made.isfinite().all():  # as finite 64-bit numbers they passed
            raise self._about(spec, f"a number beyond {torch.finfo(spec.torch_dtype).max:.3g}")
        return made

    def _refusal(self, found: Any, error: ValidationError) -> Refusal:
        """The first of pydantic's errors, in the model's terms. A misspelled name is unknown, and another one missing:
        the former says more."""
        first = min(error.errors(include_url=False), key=lambda one: one["type"] != "extra_forbidden")
        kind, at = first["type"], first["loc"]
        names = [spec.name for spec in self.manifest.inputs]
        if len(at) < 2:
            return Refusal(
                422, f'the body is an object {{"inputs": {{...}}}} with {", ".join(map(repr, names))} in it.'
            )
        name = str(at[1])
        if kind == "extra_forbidden":
            short = name[:80]
            return Refusal(422, f"{short!r} is no input of the model: {nearest(short, names)}", input=short)
        [spec] = [spec for spec in self.manifest.inputs if spec.name == name]
        if kind == "missing":
            return self._about(spec, "nothing")
        place = "".join(f"[{index}]" for index in at[2:])
        values = found["inputs"][name]
        shape = _shape(values)
        if kind in ("too_short", "too_long", "list_type") or isinstance(first["input"], list):
            if not any(at[2:]) or len(shape) != len(spec.shape):  # what `shape` says is what is wrong
                return self._about(spec, f"shape {shape}" if shape else _shown(values))
            here = f"{len(first['input'])} values" if isinstance(first["input"], list) else _shown(first["input"])
            return self._about(spec, f"{here} at {name}{place}")
        return self._about(spec, f"{_shown(first['input'])} at {name}{place}")

    def _about(self, spec: TensorSpec, given: str) -> Refusal:
        expected = f"{_kind(spec)} of shape [{', '.join(map(str, spec.shape))}], batch 1 to {self._max_batch}"
        return Refusal(
            422,
            f"input {spec.name!r}: given {given}; expected {expected}.",
            input=spec.name,
            given=given,
            expected=expected,
        )


def _check_servable(manifest: Manifest) -> None:
    if not manifest.inputs or not manifest.outputs:
        raise ConfigError(
            "the file has weights and no program.",
            why="serving calls the model, and its code is not here.",
            fix="export it as .pt2 or .onnx.",
        )
    for spec in (*manifest.inputs, *manifest.outputs):
        if not spec.batched or any(isinstance(size, str) for size in spec.shape[1:]):
            raise ConfigError(
                f"{spec} can't be served.",
                why="several requests share a forward pass: the first dimension of each input and output has to be the "
                "batch, and the others fixed.",
                fix="export it with a dynamic batch, inputs and outputs with one row per sample.",
            )
        if spec.dtype not in ("bool", *_INTEGERS, *_FLOATS):
            raise ConfigError(
                f"{spec} can't be served.",
                why=f"JSON has no numbers of type {spec.dtype}.",
                fix="export a model that takes and returns real numbers, integers or booleans.",
            )


def _model(title: str, field: str, specs: tuple[TensorSpec, ...], max_batch: int) -> type[BaseModel]:
    # A tensor may have a name that no Python attribute can have: it is the alias of one.
    strict = ConfigDict(extra="forbid")
    fields: dict[str, Any] = {
        f"tensor_{index}": (
            _nested_lists(spec, max_batch),
            Field(alias=spec.name, title=spec.name, description=str(spec)),
        )
        for index, spec in enumerate(specs)
    }
    inner = create_model(f"{title}Tensors", __config__=strict, **fields)
    whole: dict[str, Any] = {field: (inner, ...)}
    return create_model(title, __config__=strict, **whole)


def _nested_lists(spec: TensorSpec, max_batch: int) -> Any:
    """The type of a tensor as JSON. Validation ends with the first error: there may be millions."""
    kind = _number(spec)
    for size in map(int, reversed(spec.shape[1:])):
        kind = Annotated[list[kind], Field(min_length=size, max_length=size), FailFast()]  # type: ignore[valid-type]
    return Annotated[list[kind], Field(min_length=1, max_length=max_batch), FailFast()]  # type: ignore[valid-type]


def _number(spec: TensorSpec) -> Any:
    if spec.dtype == "bool":
        return Annotated[bool, Field(strict=True)]
    if spec.dtype in _FLOATS:
        return Annotated[float, Field(strict=True, allow_inf_nan=False)]
    bounds = torch.iinfo(spec.torch_dtype)
    return Annotated[int, Field(strict=True, ge=bounds.min, le=bounds.max)]


def _described(model: type[BaseModel], field: str, specs: tuple[TensorSpec, ...]) -> dict[str, Any]:
    schema = model.model_json_schema()
    [schema["properties"][field]] = schema.pop("$defs").values()
    if sum(math.prod(map(int, spec.shape[1:])) for spec in specs) <= _LONGEST_EXAMPLE:
        schema["examples"] = [{field: {spec.name: _example(spec) for spec in specs}}]
    return schema


def _example(spec: TensorSpec) -> Any:
    value = True if spec.dtype == "bool" else 1 if spec.dtype in _INTEGERS else 0.5
    return torch.full((1, *map(int, spec.shape[1:])), value, dtype=spec.torch_dtype).tolist()


def _kind(spec: TensorSpec) -> str:
    if spec.dtype == "bool":
        return "true or false"
    return f"{'finite numbers' if spec.dtype in _FLOATS else 'integers'} ({spec.dtype})"


def _shape(values: Any) -> list[int]:
    """Of nested lists, by the first of each."""
    return [len(values), *_shape(values[0] if values else None)] if isinstance(values, list) else []


def _shown(value: Any) -> str:
    """A value as in JSON, cut short."""
    text = to_json(value, inf_nan_mode="constants").decode()
    return text if len(text) <= 40 else f"{text[:40]}..."
