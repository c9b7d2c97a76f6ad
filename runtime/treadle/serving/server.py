"""One process that serves one file. The only importer of uvicorn (extra ``treadle[serve]``)."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import time
from pathlib import Path
from types import FrameType
from typing import final

import uvicorn
from fastapi import FastAPI

from treadle.errors import ConfigError
from treadle.export.loading import load_exported, read_manifest
from treadle.serving.app import app_of
from treadle.serving.limits import Limits
from treadle.serving.service import Service


def serve(path: Path, *, host: str, port: int, limits: Limits) -> int:
    """Serve until a signal asks to stop. Returns the exit status: 0 after SIGTERM and 130 after Ctrl-C, all requests at hand
    answered; 1 if some were lost.

    Args:
        path: A ``.pt2`` or ``.onnx`` file that treadle exported.
        host: The address to listen at.
        port: 0: any that is free; the first line printed says which.
        limits: Of what is taken on.

    Raises:
        TreadleError: The address can't be had, or the file can't be loaded or served.
    """
    service = Service(read_manifest(path), lambda: load_exported(path), limits)
    listening = _listen(host, port)
    at = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
    print(f"loading {path}; {at}/ready says when", flush=True)
    return asyncio.run(_serve(service, listening, at))


async def _serve(service: Service, listening: socket.socket, at: str) -> int:
    server = _Server(app_of(service, lifespan=False), service)
    starting = asyncio.create_task(_start(service, server, at))
    await server.serve(sockets=[listening])
    if starting.done():
        starting.result()
    starting.cancel()
    await service.close()
    if server.lost:
        print(f"stopped; requests that got no outputs: {server.lost}", file=sys.stderr)
    return server.status


async def _start(service: Service, server: _Server, at: str) -> None:
    try:
        await service.start()
    except BaseException:
        server.should_exit = True
        raise
    manifest = service.schema.manifest
    signature = f"{', '.join(map(str, manifest.inputs))} -> {', '.join(map(str, manifest.outputs))}"
    print(f"ready: {manifest.model}, {signature}; requests as in {at}/docs", flush=True)


@final
class _Server(uvicorn.Server):
    """Asked to stop, it is not ready any more, answers what it has, and only then closes its socket."""

    def __init__(self, app: FastAPI, service: Service) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="off",
                log_level="warning",
                access_log=False,
                server_header=False,
                ws="none",
                timeout_graceful_shutdown=2,  # to send the last answers; computing them has its own time
            )
        )
        self.service = service
        self._asked: int | None = None
        self._until = 0.0
        self.lost = 0
        """Requests that were given up."""

    @property
    def status(self) -> int:
        """Of the process, afterwards."""
        if self.lost:
            return 1
        return 128 + signal.SIGINT if self._asked == signal.SIGINT else 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._asked is not None and sig == signal.SIGINT:  # an impatient Ctrl-C: at once
            self.force_exit = True
        self._asked = sig

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        if self._asked is not None:
            if self.service.phase != "stopping":
                self.service.stop_admitting()
                self._until = time.monotonic() + self.service.limits.shutdown_s
            if self.service.at_hand and (self.force_exit or time.monotonic() > self._until):
                self.lost = self.service.at_hand
                self.service.give_up()
            self.should_exit = self.should_exit or self.lost > 0 or not self.service.at_hand
        return await super().on_tick(counter)


def _listen(host: str, port: int) -> socket.socket:
    fix = "--port 0 takes any that is free."
    if not 0 <= port < 2**16:
        raise ConfigError(f"port {port} can't be.", why="ports are numbers from 0 to 65535.", fix=fix)
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ConfigError(
            f"can't listen at {host}, port {port}: {error.strerror}.",
            why="a server needs an address of this machine and a port that no other program has.",
            fix=fix,
        ) from None
