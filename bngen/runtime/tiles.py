"""Leave to use the registers of Intel's matrix unit (AMX), which Linux gives a process that asks.

In: nothing, or the name of what needs it. Out: whether the system knows of them; an error where it
does not let this process use them. Without its leave the first instruction ends the process.

Leave is for all threads of a process, those that run already, too, and a child process inherits
it. From then on a stack for signals must have room for 8 KiB of tiles, and so nobody asks who does
not need them.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform

from bngen.errors import TargetError

_ARCH_PRCTL = 158
"""Number of the system call on x86-64; ``asm/prctl.h`` has those of what it does."""
_GET_SUPPORTED, _REQUEST, _TILE_DATA = 0x1021, 0x1023, 18


@functools.cache
def are_known() -> bool:
    """Whether the system can let a process use tiles."""
    found = ctypes.c_uint64()
    return _called(_GET_SUPPORTED, ctypes.byref(found)) == 0 and bool(found.value >> _TILE_DATA & 1)


def ask(program: str) -> None:
    """Ask for leave, unless this process has it.

    Args:
        program: what needs it.

    Raises:
        TargetError: when the system refuses.
    """
    if number := _refusal():
        why = os.strerror(number)
        if number == errno.ENOSPC:
            why = "a thread has a stack for signals that is too small for them"
        raise TargetError(
            f"{program} needs tiles (AMX), which the system does not let this process use: {why}",
            hint="build it with -mattr=-amx-bf16 here",
        )


_leave = False


def _refusal() -> int:
    """Why the system refuses, as ``errno``; 0 where it does not."""
    global _leave
    if not _leave:
        if number := _called(_REQUEST, ctypes.c_ulong(_TILE_DATA)):
            return number
        _leave = True
    return 0


def _called(option: int, argument: object) -> int:
    """What the system call reports as ``errno``; 0 for success."""
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "AMD64"):
        return errno.ENOSYS
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    if call(ctypes.c_long(_ARCH_PRCTL), ctypes.c_long(option), argument) == 0:
        return 0
    return ctypes.get_errno() or errno.EPERM
