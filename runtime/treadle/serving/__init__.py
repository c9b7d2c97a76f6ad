"""An exported model behind HTTP: ``python -m treadle.serving model.pt2``, or as an app for one's own ASGI server.

Requests that arrive together are computed together. Needs the extra ``treadle[serve]`` (fastapi, uvicorn, pydantic), which
is imported when an app is made and not before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from treadle.errors import ConfigError
from treadle.serving.limits import Limits

if TYPE_CHECKING:
    from fastapi import FastAPI

    from treadle.export import Exported

__all__ = ["Limits", "create_app"]


def create_app(exported: Exported, *, limits: Limits | None = None) -> FastAPI:
    """An ASGI app that answers ``POST /predict``; described under its ``/docs``.

    The app's lifespan warms the model up, and an app mounted in another one has none of its own: run
    ``app.router.lifespan_context(app)`` in the lifespan of the other. All requests must come on one event loop; each process
    of a server with several workers has its own queue and model.

    Args:
        exported: What :func:`treadle.export.load_exported` returned.
        limits: Default: ``Limits()``.

    Raises:
        ConfigError: The extra is not installed, or the model can't be served: it has an input or output whose first
            dimension is not the batch. (A failing warm-up raises it from the lifespan.)
    """
    with extra():
        from treadle.serving.app import app_of
    from treadle.serving.service import Service

    return app_of(Service(exported.manifest, lambda: exported, limits or Limits()), lifespan=True)


@contextmanager
def extra() -> Iterator[None]:
    """A package of the extra that is not there is a ConfigError that names it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "pydantic", "pydantic_core", "starlette", "uvicorn"):
            raise
        raise ConfigError(
            f"serving needs {error.name}.",
            why="it is an extra: treadle itself needs only torch and rich.",
            fix='pip install "treadle[serve]"',
        ) from None
