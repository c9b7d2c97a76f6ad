"""``python -m treadle.lightning convert old.ckpt new.ckpt``."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Sequence

from treadle.errors import TreadleError


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, convert, say what is different. Returns the exit code: 0; 1 for a file that can't be read or written."""
    parser = ArgumentParser(prog="python -m treadle.lightning", description="Move a project from PyTorch Lightning.")
    verbs = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    convert = verbs.add_parser(
        "convert",
        help="write a checkpoint of PyTorch Lightning as one of treadle",
        description="Write a checkpoint of PyTorch Lightning as one of treadle, which fit(ckpt_path=NEW) goes on from at the "
        "start of the next epoch. Nothing in the file is executed.",
    )
    convert.add_argument("old", help="a .ckpt file of PyTorch Lightning")
    convert.add_argument("new", help="the file to write")
    convert.add_argument("--seed", type=int, default=0, help="of the random numbers from there on (default: 0)")
    asked = parser.parse_args(arguments)

    from treadle.lightning.checkpoints import convert as write_converted

    try:
        sentences = write_converted(asked.old, asked.new, seed=asked.seed)
    except TreadleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {asked.new} can't be written: {error.strerror or error}", file=sys.stderr)
        return 1
    print(f"{asked.new} is written.")
    for sentence in sentences:
        print(f"- {sentence}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
