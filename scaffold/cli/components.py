"""``scaffold add`` and ``scaffold remove``."""

from __future__ import annotations
