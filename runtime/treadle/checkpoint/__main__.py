"""``python -m treadle.checkpoint``: from a sharded checkpoint to one file, and back."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from treadle.checkpoint.conversion import consolidate, shard
from treadle.errors import TreadleError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit code: 1 with the reason on stderr."""
    given = _parser().parse_args(arguments)
    try:
        if given.command == "consolidate":
            consolidate(given.source, given.target)
            print(f"{given.target}: one file, {given.target.stat().st_size:,} bytes")
        else:
            shard(given.source, given.target, given.pieces)
            print(f"{given.target}: {given.pieces} {'piece' if given.pieces == 1 else 'pieces'}")
    except TreadleError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{given.target} could not be written: {error.strerror or error}.", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m treadle.checkpoint", description="From a sharded checkpoint to one file, and back."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    one = commands.add_parser("consolidate", help="make one file of a sharded checkpoint")
    several = commands.add_parser("shard", help="write a checkpoint in pieces, for ranks that each read theirs")
    for command in (one, several):
        command.add_argument("source", type=Path, help="the checkpoint that is there")
        command.add_argument("target", type=Path, help="the one to be made")
    several.add_argument("--pieces", type=int, default=2, help="how many ranks would have written it (default: 2)")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
