"""``python -m treadle.serving model.pt2``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from treadle.errors import TreadleError
from treadle.serving import extra
from treadle.serving.limits import Limits


def main(args: Sequence[str] | None = None) -> int:
    """Serve a file; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m treadle.serving",
        description="Serve an exported model: POST /predict, GET /docs, /model, /ready, /health, /stats.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", type=Path, help="a .pt2 or .onnx file that treadle exported")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0: any of this machine")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free")
    parser.add_argument("--max-batch", type=int, default=Limits.max_batch, help="samples in one forward pass")
    parser.add_argument(
        "--max-wait-ms", type=float, default=Limits.max_wait_ms, help="milliseconds a request waits for company"
    )
    parser.add_argument(
        "--max-queue", type=int, default=Limits.max_queue, help="requests at hand at once; one more gets 503"
    )
    parser.add_argument(
        "--max-body-mb", type=float, default=Limits.max_body_mb, help="megabytes of JSON in a request; else 413"
    )
    parser.add_argument(
        "--shutdown-s", type=float, default=Limits.shutdown_s, help="seconds to answer what is at hand after SIGTERM"
    )
    given = parser.parse_args(args)
    try:
        limits = Limits(
            max_batch=given.max_batch,
            max_wait_ms=given.max_wait_ms,
            max_queue=given.max_queue,
            max_body_mb=given.max_body_mb,
            shutdown_s=given.shutdown_s,
        )
        with extra():
            from treadle.serving.server import serve
        return serve(given.model, host=given.host, port=given.port, limits=limits)
    except TreadleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # not sys.exit: that would wait for the thread, which may still load, or compute what was given up
