"""make.py imports Lightning, which the tests do without."""

collect_ignore = ["make.py"]
