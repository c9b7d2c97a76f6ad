"""Kill a process at one of its system calls: by ptrace, so on Linux only. Part of ``kill_sweep.py``."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import sys
from collections.abc import Callable

LIBC = ctypes.CDLL(None, use_errno=True)
TRACE_ME, NEXT_CALL, SET_OPTIONS, CALL_INFO = 0, 24, 0x4200, 0x420E
FOLLOW_ALL = 0x1 | 0x2 | 0x4 | 0x8 | 0x100000  # mark system calls; forks, vforks, threads; nobody outlives the tracer
WAIT_FOR_ALL = 0x40000000
CALL = signal.SIGTRAP | 0x80
ENTERS = 1
NOT_ALLOWED = 77
NUMBERS = {
    "x86_64": "1 write 2 open 3 close 18 pwrite64 20 writev 40 sendfile 73 flock 74 fsync 75 fdatasync 77 ftruncate 82 rename "
    "83 mkdir 86 link 87 unlink 257 openat 258 mkdirat 263 unlinkat 264 renameat 265 linkat 316 renameat2 326 copy_file_range",
    "aarch64": "32 flock 34 mkdirat 35 unlinkat 37 linkat 38 renameat 46 ftruncate 56 openat 57 close 64 write 66 writev "
    "68 pwrite64 71 sendfile 82 fsync 83 fdatasync 276 renameat2 285 copy_file_range",
}
"""The system calls that touch files."""


class Untraceable(Exception):
    """No process can be killed at a system call here."""


class CallInfo(ctypes.Structure):
    """What the kernel says of the call at which a traced process stands (``struct ptrace_syscall_info``)."""

    _fields_ = (
        ("kind", ctypes.c_uint8),
        ("padding", ctypes.c_uint8 * 3),
        ("machine", ctypes.c_uint32),
        ("pointers", ctypes.c_uint64 * 2),
        ("number", ctypes.c_uint64),
        ("arguments", ctypes.c_uint64 * 6),
    )


def be_traced() -> None:
    """Called in the process that is to be followed, by the one that forked it; goes on when that follows it."""
    if sys.platform != "linux" or LIBC.ptrace(TRACE_ME, 0, None, None):
        os._exit(NOT_ALLOWED)
    os.kill(os.getpid(), signal.SIGSTOP)


def follow(pid: int, number: int, *, counts: Callable[[], bool], kill: Callable[[], None]) -> tuple[str | None, int]:
    """Let the process ``pid`` and all its threads run, and call ``kill`` right before one of them makes the ``number``-th
    system call on a file. The calling process must have no other children.

    Args:
        counts: Whether calls of now are counted.

    Returns:
        The name of the call, None if there were fewer; and with which status the process ended.

    Raises:
        Untraceable: This machine can't, or may not.
    """
    words, hit, begun = NUMBERS.get(platform.machine(), "").split(), None, False
    names = dict(zip(map(int, words[::2]), words[1::2], strict=True))
    while True:
        thread, status = os.waitpid(-1, WAIT_FOR_ALL if sys.platform == "linux" else 0)
        if not os.WIFSTOPPED(status):
            if thread != pid:
                continue
            if not names or (os.WIFEXITED(status) and os.WEXITSTATUS(status) == NOT_ALLOWED):
                raise Untraceable("no process may be traced on this machine")
            return hit, status
        if not begun:
            LIBC.ptrace(SET_OPTIONS, thread, None, ctypes.c_void_p(FOLLOW_ALL))
            begun = True
        passed = 0
        if os.WSTOPSIG(status) == CALL:
            info = CallInfo()
            LIBC.ptrace(CALL_INFO, thread, ctypes.c_void_p(ctypes.sizeof(info)), ctypes.byref(info))
            if info.kind == ENTERS and info.number in names and hit is None and counts():
                number -= 1
                if number == 0:
                    hit = names[info.number]
                    kill()
                    continue
        elif os.WSTOPSIG(status) not in (signal.SIGTRAP, signal.SIGSTOP):
            passed = os.WSTOPSIG(status)  # a signal of its own
        LIBC.ptrace(NEXT_CALL, thread, None, ctypes.c_void_p(passed))
