"""One small file from an https URL, within limits on size, time, and where the server may send us."""

from __future__ import annotations

import threading
import time
import urllib.request
from http.client import HTTPException, HTTPResponse
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from scaffold import settings
from scaffold.catalog.files import LARGEST

_TIME_LIMIT = 20.0
"""Seconds for all of it: name look-up, redirects, and a server that sends a byte a second included."""


def download(url: str, *, direct: bool) -> bytes:
    """What is at ``url``.

    Args:
        url: Of https, or of a server on this machine.
        direct: Use no proxy.

    Raises:
        OSError: It cannot be had; the message says why in a few words.
        ValueError: It is larger than a catalog may be.
    """
    outcome: list[bytes | OSError | ValueError] = []

    def work() -> None:
        try:
            outcome.append(_get(url, direct=direct))
        except HTTPError as error:
            error.close()
            outcome.append(OSError(f"the server says {error.code} {error.reason}"))
        except URLError as error:
            outcome.append(OSError(str(error.reason)))
        except HTTPException as error:
            outcome.append(OSError(f"the server does not speak HTTP ({type(error).__name__})"))
        except (OSError, ValueError) as error:
            outcome.append(error)

    # A name look-up and a header that comes byte by byte know no time limit of their own: the thread is left behind.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(_TIME_LIMIT)
    result = outcome[0] if outcome else TimeoutError(f"no answer within {_TIME_LIMIT:.0f} seconds")
    if isinstance(result, bytes):
        return result
    raise result


class _SameServer(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only on the server that the user agreed to."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        before, after = urlsplit(req.full_url), urlsplit(newurl)
        if (before.scheme, before.netloc) != (after.scheme, after.netloc):
            fp.close()
            where = f"{after.scheme}://{after.netloc.rpartition('@')[2]}"
            raise OSError(f"the server sends on to {where[:80]}, which is another one")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _get(url: str, *, direct: bool) -> bytes:
    handlers: list[urllib.request.BaseHandler] = [_SameServer()]
    if direct:
        handlers.append(urllib.request.ProxyHandler({}))
    named = {"User-Agent": settings.DISTRIBUTION}
    request = urllib.request.Request(url, headers=named)  # noqa: S310  the caller saw that it is https or loopback
    until = time.monotonic() + _TIME_LIMIT
    response: HTTPResponse
    with urllib.request.build_opener(*handlers).open(request, timeout=_TIME_LIMIT / 2) as response:
        content = bytearray()
        while chunk := response.read1(65_536):
            content += chunk
            if len(content) > LARGEST:
                raise ValueError(f"it has more than {LARGEST:,} bytes")
            if time.monotonic() > until:
                raise TimeoutError(f"not whole within {_TIME_LIMIT:.0f} seconds")
        return bytes(content)
