"""The guest harness: boots a small Debian with real LVM and dm-thin under qemu, and works in it from outside.

Its facade is `Guest` (a context manager over one machine) and `prepare` (everything that must be there before a boot).
It needs the standard library only, and apt to fetch what the machine lacks.
"""

from .guest import Guest, GuestError, Result
from .images import Images, prepare

__all__ = ["Guest", "GuestError", "Images", "Result", "prepare"]
