"""What Acme asks of every training run. treadle finds it by the entry points in pyproject.toml."""

from acme_policies.callbacks import AllowedPrecision, TimeLimit
from acme_policies.record import RecordOfRuns

__all__ = ["AllowedPrecision", "RecordOfRuns", "TimeLimit"]
