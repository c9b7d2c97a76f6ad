"""``python -m my_project fit --config FILE``: a project's command line, typed by the signatures of its own classes.

The only importer of jsonargparse (extra ``treadle[cli]``).
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch

from treadle.arguments import environment_settings
from treadle.callbacks import Callback
from treadle.checkpoint import write_plain
from treadle.checkpoint.remote import is_remote, location
from treadle.data import DataModule
from treadle.environments import World, environment_for
from treadle.errors import ConfigError, TreadleError, nearest
from treadle.explaining import explained, not_settings
from treadle.module import Module
from treadle.seeding import seed_everything
from treadle.trainer import Trainer

Verb = Literal["fit", "validate", "test", "predict", "export", "estimate"]
VERBS: dict[str, str] = {
    "fit": "train, and validate on the way",
    "validate": "evaluate a checkpoint on the validation data",
    "test": "evaluate a checkpoint on the test data",
    "predict": "apply a checkpoint to the prediction data and save what it says",
    "export": "write a checkpoint as a file that runs without its code (.pt2, .onnx), or its weights (.safetensors)",
    "estimate": "say what a training step takes in memory and FLOPs, on devices that needn't be there",
}

_PATIENCE = 3.0  # seconds


def main(model: type[Module], data: type[DataModule], args: Sequence[str] | None = None) -> None:
    """Run the command line of a project and exit: 0 when done, 1 after a user's mistake, 130 when interrupted, 128 and its
    number after a signal. Of several ranks, what all of them have to say is said once.

    Args:
        model: The project's Module; its ``__init__`` says what can be set under ``model``.
        data: The project's DataModule; the same for ``data``.
        args: Default: those of the process.
    """
    from treadle.launch import launched, stay_with_parent

    stay_with_parent()  # before anything can fail here, which is then that process's to say
    try:
        run(model, data, list(sys.argv[1:] if args is None else args))
    except TreadleError as error:
        _say(error)
        status = 1
    except KeyboardInterrupt:
        if _world().rank == 0:
            print(
                "interrupted; fit --ckpt_path auto continues from the newest checkpoint, if there is one",
                file=sys.stderr,
            )
        status = 130
    else:
        return
    if (ours := launched()) is not None:
        ours.close(failed=True)
    raise SystemExit(status) from None


def _say(error: TreadleError) -> None:
    """Once: where every rank comes to the same, rank 0 says it, or the first on each machine; what one rank of several
    says has its number. The ranks that treadle has started leave it to the process that did."""
    from treadle.launch import launched, note

    world = _world()
    everywhere, of_command = (bool(error.__dict__.get(mark)) for mark in ("on_every_rank", "of_command"))
    said_by_another = (everywhere and world.rank > 0) or (of_command and world.local_rank > 0)
    if note(error):
        return
    if said_by_another:
        time.sleep(_PATIENCE)  # the end of one rank is a launcher's sign to end the others: let that one speak first
        return
    by_all = everywhere or (of_command and world.rank == 0) or launched() is not None or world.size == 1
    print(f"{'' if by_all else f'rank {world.rank}: '}error: {error}", file=sys.stderr, flush=True)


def _world() -> World:
    from treadle.launch import launched

    if (ours := launched()) is not None:
        return ours.world
    try:
        return environment_for().world(os.environ)
    except ConfigError:  # that is the error at hand
        return World()


@contextmanager
def _of_command() -> Iterator[None]:
    """Mistakes made inside are the command's and its files', the same for all ranks of a machine."""
    try:
        yield
    except TreadleError as error:
        error.__dict__["of_command"] = True
        raise


def run(model: type[Module], data: type[DataModule], args: list[str]) -> Trainer | None:
    """Parse ``args`` and do what they say. Returns the trainer; None when only help was asked for.

    Raises:
        TreadleError: A user's mistake.
    """
    verb, rest = args[0] if args else "--help", args[1:]
    if verb in ("-h", "--help"):
        print(_overview())
        return None
    with _of_command():
        if verb not in VERBS:
            raise ConfigError(
                f"{verb!r} is not a command.", why=f"commands are {', '.join(VERBS)}.", fix=nearest(verb, VERBS)
            )
        parser = _parser(verb, model, data)
        settings = _parsed(parser, _without_empty_configs(rest))
        if verb == "fit":
            _require_duration(settings)
        if settings.seed_everything is not None:
            seed_everything(settings.seed_everything)
        if verb == "estimate":
            _estimate(parser, settings, model)
            return None
        if verb == "export":
            _export(parser, settings)
            return None
        made = parser.instantiate(settings)
    trainer: Trainer
    if verb == "fit":
        trainer = _with(made.trainer, SaveConfig(_resolved(parser, settings)))
        trainer.fit(made.model, datamodule=made.data, ckpt_path=settings.ckpt_path)
        _report(trainer)
    elif verb == "predict":
        trainer = made.trainer
        outputs = trainer.predict(made.model, datamodule=made.data, ckpt_path=settings.ckpt_path)
        if outputs is not None:  # else a callback wrote them as they came
            outputs = _of_all_ranks(trainer, outputs)
            if trainer.is_global_zero:
                write_plain(location(settings.output), outputs)
                print(f"{len(outputs)} batches of predictions in {settings.output}")
    else:
        trainer = made.trainer
        getattr(trainer, verb)(made.model, datamodule=made.data, ckpt_path=settings.ckpt_path)
    return trainer


def _of_all_ranks(trainer: Trainer, outputs: list[Any]) -> list[Any]:
    """The batches' predictions in the loader's order, on rank 0. Collective."""
    if trainer.world_size == 1:
        return outputs
    several = len(trainer.num_predict_batches) > 1
    mine = (trainer.fabric.strategy.share.index, outputs if several else [outputs])
    parts = [found for _, found in sorted(dict(trainer.fabric.ranks.gather_objects(mine, to=0)).items())]
    nothing = object()  # a rank whose turn it was no more
    merged = [
        [output for turn in zip_longest(*of_loader, fillvalue=nothing) for output in turn if output is not nothing]
        for of_loader in zip(*parts, strict=True)
    ]
    return merged if several or not merged else merged[0]


def _estimate(parser: Any, settings: Any, model: type[Module]) -> None:
    """Print what a step takes. Of the Trainer, only what it was asked for is looked at: none is made."""
    from treadle.estimating import estimate_of_a_fit

    as_json = settings.json
    settings.trainer.callbacks = settings.trainer.profiler = None
    settings.trainer.logger = False
    made = parser.instantiate(
        settings,
        instantiators=[
            (lambda _, **asked: SimpleNamespace(**asked), Trainer, False),
            (_without_memory, model, False),
        ],
    )
    asked = made.trainer
    found = estimate_of_a_fit(
        made.model,
        made.data,
        devices=_count(asked.devices),
        num_nodes=asked.num_nodes,
        strategy=asked.strategy,
        precision=asked.precision,
        accumulate_grad_batches=asked.accumulate_grad_batches,
        micro_batch_size=None if asked.micro_batch_size == "auto" else asked.micro_batch_size,
    )
    if _world().rank == 0:
        print(json.dumps(found.as_dict()) if as_json else found.described())


def _export(parser: Any, settings: Any) -> None:
    """Write one file. Of the Trainer, only what says where its runs lie and which weights count is used."""
    from treadle.export.command import SETTINGS, export_checkpoint

    asked = settings.trainer
    asked.accelerator, asked.devices, asked.num_nodes, asked.strategy = "cpu", 1, 1, "auto"
    asked.compile = asked.profiler = None
    made = parser.instantiate(settings)
    print(export_checkpoint(made.trainer, made.model, made.data, **{name: settings[name] for name in SETTINGS}))


def _without_memory(kind: type[Module], *arguments: Any, **settings: Any) -> Module:
    """A module on the meta device; for one that reads values when it is made, a real one."""
    try:
        with torch.device("meta"):
            return kind(*arguments, **settings)
    except Exception:  # noqa: BLE001 - users' code; what is wrong with it anyway is raised again here
        return kind(*arguments, **settings)


def _count(devices: Any) -> int:
    """How many ``devices`` are meant, of a machine that need not be this one."""
    match devices:
        case "auto":
            return 1
        case [*indices]:
            return len(indices)
        case str() if "," in devices:
            return len([index for index in devices.split(",") if index.strip()])
    try:
        count = int(devices)
    except (TypeError, ValueError):
        count = 0
    if count < 1 or isinstance(devices, bool):
        raise ConfigError(
            f"devices={devices!r} in an estimate.",
            why="it is of so many ranks on each node, whatever this machine has.",
            fix="--trainer.devices 8",
        )
    return count


def _resolved(parser: Any, settings: Any) -> str:
    """Every setting with its value, as a config file that starts the same run anew."""
    fresh = settings.clone()
    fresh.ckpt_path = None
    text: str = parser.dump(fresh, skip_unset=False)
    return text


class SaveConfig(Callback):
    """Writes the resolved config beside the run. A resumed run keeps the first; a changed one gets its step in its name."""

    def __init__(self, config: str) -> None:
        self._config = config

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        if not trainer.is_global_zero:
            return
        trainer.lineage["config"] = hashlib.blake2b(self._config.encode(), digest_size=16).hexdigest()
        if not trainer.loggers:
            return
        path = trainer.run_folder / "config.yaml"
        if path.exists() and path.read_text(encoding="utf-8") != self._config:
            path = trainer.run_folder / f"config-step={trainer.global_step}.yaml"
        path.write_text(self._config, encoding="utf-8")


def _with(trainer: Trainer, callback: Callback) -> Trainer:
    trainer.callbacks.insert(0, callback)
    return trainer


def _overview() -> str:
    verbs = "\n".join(f"  {verb:10}{text}" for verb, text in VERBS.items())
    return (
        f"usage: {_program()} COMMAND --config FILE [--config OVERLAY] [--GROUP.NAME VALUE] ...\n\n{verbs}\n\n"
        "COMMAND --help lists every setting; --print_config shows them as they would be used."
    )


def _program() -> str:
    """How this program was started, to be typed again."""
    script = Path(sys.argv[0])
    return f"python -m {script.parent.name}" if script.name == "__main__.py" else f"python {script.name}"


def _parser(verb: str, model: type[Module], data: type[DataModule]) -> Any:
    try:
        from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]
    except ModuleNotFoundError:
        raise ConfigError(
            "the command line needs jsonargparse.",
            why="it is an extra: treadle itself needs only torch and rich.",
            fix='pip install "treadle[cli]"',
        ) from None
    parser = ArgumentParser(
        usage=f"{_program()} {verb} --config FILE [--config OVERLAY] [--GROUP.NAME VALUE] ...",
        description=VERBS[verb].capitalize() + ".",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", action=ActionConfigFile, help="A YAML file. Given again, the later one overrides what it names."
    )
    parser.add_argument(
        "--seed_everything", type=int | None, default=None, help="Seeds every generator, before all else."
    )
    parser.add_class_arguments(Trainer, "trainer")
    known = list(inspect.signature(Trainer).parameters)
    parser.set_defaults({f"trainer.{name}": value for name, value in environment_settings(known).items()})
    parser.add_class_arguments(model, "model")
    parser.add_class_arguments(data, "data")
    if verb == "estimate":
        parser.add_argument("--json", action="store_true", help="For machines: one JSON object, sizes in bytes.")
        return parser
    if verb == "fit":
        default, how = None, 'Continue from "last", "best", a path, or "auto": "last" if there is one.'
    else:
        default, how = "best", 'Which weights: "best", "last" or a path.'
    parser.add_argument("--ckpt_path", type=str | None, default=default, help=how)
    if verb == "predict":
        parser.add_argument("--output", type=str, default="predictions.pt", help="Where to save the predictions.")
    elif verb == "export":
        from treadle.export.command import add_settings

        add_settings(parser)
    return parser


def _without_empty_configs(args: list[str]) -> list[str]:
    """The arguments less overlays that say nothing: every line of them is blank or a comment."""
    kept, rest = [], iter(args)
    for arg in rest:
        option, equals, value = arg.partition("=")
        if option != "--config":
            kept.append(arg)
            continue
        value = value if equals else next(rest, "")
        if not _says_nothing(Path(value)):
            kept += ["--config", value] if value else ["--config"]
    return kept


def _says_nothing(path: Path) -> bool:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return False  # the parser says what is wrong with it
    return all(not line.strip() or line.lstrip().startswith("#") for line in lines)


def _require_duration(settings: Any) -> None:
    """A forgotten config must not train for a thousand epochs."""
    trainer = settings.trainer
    if trainer.max_epochs is None and trainer.max_steps == -1 and not trainer.fast_dev_run:
        raise ConfigError(
            "nothing says how long to train.",
            why="trainer.max_epochs and trainer.max_steps are not set, neither in a config nor on the command line.",
            fix="--config configs/train.yaml, or --trainer.max_epochs 10",
        )


def _parsed(parser: Any, args: list[str]) -> Any:
    from jsonargparse import ArgumentError

    try:
        settings = parser.parse_args(args)
    except ArgumentError as error:
        raise explained(str(error), parser) from None
    except TypeError:
        settings = None  # a group that is no mapping, which the parser does not expect
    for group in ("trainer", "model", "data"):
        if settings is None or not hasattr(settings.get(group, settings), "__dict__"):
            raise not_settings("a group" if settings is None else group)
    return settings


def _report(trainer: Trainer) -> None:
    """Where the results of a fit lie, in one line or two."""
    if not trainer.is_global_zero:
        return
    stopping = trainer.early_stopping_callback
    if stopping is not None and stopping.stopping_reason:
        print(f"stopped in epoch {stopping.stopped_epoch}: {stopping.stopping_reason}")
    saved = trainer.checkpoint_callback
    if saved is not None and saved.best_model_path:
        score = f"best {saved.monitor} = {saved.best_model_score:.5g}: " if saved.best_model_score is not None else ""
        print(f"{score}{_relative(saved.best_model_path)}")


def _relative(path: str) -> str:
    if is_remote(path):
        return path
    try:
        return str(Path(path).resolve().relative_to(Path.cwd().resolve()))
    except ValueError:
        return path
