"""Start and update training repositories from templates."""

__version__ = "0.1.0"
