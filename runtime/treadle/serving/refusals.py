"""Why a request gets no outputs, as a status and a body."""

from __future__ import annotations

from typing import final


@final
class Refusal(Exception):
    """The answer to a request that isn't computed, or couldn't be.

    Args:
        status: Of HTTP.
        detail: A sentence for whoever sent the request.
        about: ``input`` (its name), ``given`` and ``expected``, where it is about an input.
    """

    def __init__(self, status: int, detail: str, **about: str) -> None:
        super().__init__(detail)
        self.status, self.detail, self.about = status, detail, about

    @property
    def headers(self) -> dict[str, str]:
        """A 503 may be tried again, elsewhere at once and here in a second."""
        return {"Retry-After": "1"} if self.status == 503 else {}
