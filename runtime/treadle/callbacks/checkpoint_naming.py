"""The names of checkpoint files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from treadle.errors import ConfigError, nearest


def format_name(template: str, values: Mapping[str, Any], *, with_names: bool = True) -> str:
    """A file name from a template with metrics in braces.

    >>> format_name("{epoch}-{val/loss:.2f}", {"epoch": 3, "val/loss": 0.125})
    'epoch=3-val_loss=0.12'
    >>> format_name("e{epoch}-{val/loss:.2f}", {"epoch": 3, "val/loss": 0.125}, with_names=False)
    'e3-0.12'

    Args:
        template: With metrics in braces, and with how to format them after a colon.
        values: The metrics.
        with_names: Put each metric's name before its value.

    Raises:
        ConfigError: A name that is not logged.
    """

    def fill(match: re.Match[str]) -> str:
        name, spec = match[1], match[2] or ""
        if name not in values:
            raise no_metric(name, sorted(values))
        value = values[name]
        number = value if isinstance(value, int) else float(value)
        return f"{name.replace('/', '_')}={number:{spec}}" if with_names else f"{number:{spec}}"

    return re.sub(r"\{([^{}:]+)(?::([^{}]*))?\}", fill, template)


def no_metric(name: str, known: list[str]) -> ConfigError:
    """What to raise where a metric is needed that is not logged."""
    return ConfigError(
        f"ModelCheckpoint needs {name!r}, which is not logged.",
        why=f"known here: {', '.join(known) or 'nothing'}.",
        fix=nearest(name, known) if known else f'self.log("{name}", ...) in validation_step',
    )
