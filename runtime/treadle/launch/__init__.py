"""Starting the ranks where nobody has: a script runs itself again, a notebook forks or spawns a function.

Whatever happens, one rank's failure is everybody's end, it is told once and by its cause, and no process is left.
"""

from __future__ import annotations

from treadle.launch.rank import note, stay_with_parent
from treadle.launch.script import Launched, Patience, launched, start_script
from treadle.launch.session import is_interactive, run_in_ranks

__all__ = [
    "Launched",
    "Patience",
    "is_interactive",
    "launched",
    "note",
    "run_in_ranks",
    "start_script",
    "stay_with_parent",
]
