"""Which submodules are gathered as a unit, and which compute their activations again."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from torch import nn

from treadle.errors import ConfigError, nearest, warn

Classes = Iterable[type[nn.Module] | str] | type[nn.Module] | str
"""Classes of submodules, or their names as a config can say them: ``"Block"``, ``"my_project.models.Block"``. Exactly
these: a subclass has a name of its own."""
Policy = Callable[..., Any]
"""``policy(context, operation, *arguments, **settings) -> CheckpointPolicy``, as torch.utils.checkpoint takes it."""

CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
"""They have no forward pass that could gather anything."""


def of_classes(module: nn.Module, classes: Classes, setting: str) -> dict[nn.Module, str]:
    """The submodules of ``module`` that have one of ``classes``, each with its name.

    Raises:
        ConfigError: No submodule is of one of the classes, or it is a container, without a forward pass.
    """
    found: dict[nn.Module, str] = {}
    submodules = {submodule: name for name, submodule in module.named_modules() if name}
    for wanted in [classes] if isinstance(classes, (type, str)) else classes:
        matching = {sub: name for sub, name in submodules.items() if _is_of(sub, wanted)}
        if not matching:
            named = wanted if isinstance(wanted, str) else wanted.__name__
            raise ConfigError(
                f"{setting}: no submodule of {type(module).__name__} is a {named}.",
                why="it names classes of submodules, exactly.",
                fix=nearest(named, sorted({type(sub).__name__ for sub in submodules if _has_parameters(sub)})),
            )
        for sub, name in matching.items():
            if isinstance(sub, CONTAINERS):
                raise ConfigError(
                    f"{setting}: {name} is a {type(sub).__name__}.",
                    why="it has no forward pass, around which its weights could be gathered.",
                    fix="name the class of its elements, " + _classes_within(sub),
                )
        found |= matching
    return found


def units_of(module: nn.Module, roots: dict[nn.Module, str], wrap: Classes | None) -> dict[nn.Module, str]:
    """The submodules whose weights are gathered and freed together, each with its name; what is in none belongs to its
    root.

    Args:
        module: What is placed.
        roots: ``module``, or parts of it that are gathered on their own, each with its name (:func:`roots_of`).
        wrap: Classes; None: the elements of lists and sequences that are built of several of one class, each with
            submodules of its own (the blocks of a transformer).

    Raises:
        ConfigError: ``wrap`` names a class that no submodule has, or two roots share a parameter.
    """
    chosen = of_classes(module, wrap, "wrap") if wrap is not None else blocks_of(module)
    units = {sub: name for sub, name in chosen.items() if _has_parameters(sub) and sub not in roots}
    # A parameter that two units share would be gathered by one and freed by the other: it goes to what contains both.
    while shared := [owners for owners in _owners(module, {*units, *roots}) if len(owners) > 1]:
        torn = [unit for owners in shared for unit in owners if unit in units]
        if not torn:
            raise ConfigError(
                f"{' and '.join(sorted(roots[root] for root in shared[0]))} share a parameter.",
                why="with manual optimization each submodule is gathered on its own, by its own forward pass.",
                fix="put what shares into one submodule, with one forward pass.",
            )
        if wrap is not None:
            warn(
                "tied",
                f"{', '.join(sorted(units[unit] for unit in torn))} stay in what contains them: they share a parameter "
                "with another unit.",
            )
        units = {sub: name for sub, name in units.items() if sub not in torn}
    return units


def blocks_of(module: nn.Module) -> dict[nn.Module, str]:
    """The outermost elements of lists and sequences that have a class in common with another element, and submodules of
    their own."""
    found: dict[nn.Module, str] = {}
    for name, submodule in module.named_modules():
        if isinstance(submodule, (nn.ModuleList, nn.Sequential)) and not _inside(name, found.values()):
            kinds = Counter(type(element) for element in submodule)
            for index, element in submodule.named_children():
                if kinds[type(element)] > 1 and any(_has_parameters(child) for child in element.children()):
                    found[element] = f"{name}.{index}".lstrip(".")
    return {element: name for element, name in found.items() if not isinstance(element, CONTAINERS)}


def checkpointed(
    module: nn.Module, units: dict[nn.Module, str], setting: bool | Classes | Policy | None
) -> dict[nn.Module, Policy | None]:
    """The submodules that compute their activations again in the backward pass, each with what decides which of them
    (None: all).

    Raises:
        ConfigError: The setting names a class that no submodule has, or leaves it to the units and there are none.
    """
    if setting is None or setting is False:
        return {}
    policy = setting if callable(setting) and not isinstance(setting, (type, str)) else None
    if setting is not True and policy is None:
        return dict.fromkeys(of_classes(module, setting, "activation_checkpointing"))  # type: ignore[arg-type]
    if not units:
        raise ConfigError(
            f"activation_checkpointing={setting!r}: {type(module).__name__} has no units.",
            why="it applies to each unit, and there is no list of blocks in the module, nor does wrap= name any.",
            fix="name the classes: activation_checkpointing=['Block'], " + _classes_within(module),
        )
    return dict.fromkeys(units, policy)


def recompute(module: nn.Module, policy: Policy | None) -> None:
    """Let ``module`` keep its inputs only, and compute its activations again in the backward pass. Its names stay."""
    from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

    settings: dict[str, Any] = {"use_reentrant": False}
    if policy is not None:
        settings["context_fn"] = partial(create_selective_checkpoint_contexts, policy)
    module.forward = partial(checkpoint, module.forward, **settings)


def roots_of(module: nn.Module) -> dict[nn.Module, str]:
    """What is gathered on its own: ``module``, whose step comes before its backward pass. With manual optimization the
    backward passes run inside of the step, so it is each of the submodules that the step calls.

    Raises:
        ConfigError: With manual optimization, parameters that are in no submodule.
    """
    if getattr(module, "automatic_optimization", True):
        return {module: ""}
    return dict(_callable_children(module, ""))


def _callable_children(module: nn.Module, prefix: str) -> Iterator[tuple[nn.Module, str]]:
    for name, _ in module.named_parameters(recurse=False):
        raise ConfigError(
            f"{prefix}{name} is a parameter outside of any submodule with a forward pass.",
            why="with manual optimization each submodule is gathered by its own forward pass, and nothing gathers this.",
            fix="put it into a submodule that uses it in its forward.",
        )
    for name, child in module.named_children():
        if isinstance(child, CONTAINERS):
            yield from _callable_children(child, f"{prefix}{name}.")
        elif _has_parameters(child):
            yield child, prefix + name


def _owners(module: nn.Module, units: set[nn.Module]) -> Iterable[set[nn.Module]]:
    """Of each parameter: the innermost units that use it."""
    found: dict[nn.Parameter, set[nn.Module]] = defaultdict(set)

    def walk(submodule: nn.Module, owner: nn.Module) -> None:
        owner = submodule if submodule in units else owner
        for parameter in submodule.parameters(recurse=False):
            found[parameter].add(owner)
        for child in submodule.children():
            walk(child, owner)

    walk(module, module)
    return found.values()


def _is_of(submodule: nn.Module, wanted: type | str) -> bool:
    kind = type(submodule)
    return wanted in (kind, kind.__name__, f"{kind.__module__}.{kind.__qualname__}")


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _inside(name: str, others: Iterable[str]) -> bool:
    return any(name == other or name.startswith(f"{other}.") for other in others)


def _classes_within(module: nn.Module) -> str:
    return "one of " + ", ".join(sorted({type(s).__name__ for s in module.modules() if _has_parameters(s)}))
