"""The guest harness: boots a small Debian with real LVM and dm-thin under qemu, and works in it from outside.

Its facade is `Guest` (a context manager over one machine) and `prepare` (everything that must be there before a boot);
`Container` is the same Debian on this machine's own kernel, for what needs systemd and no LVM.
It needs the standard library only, and apt to fetch what the machine lacks.
"""

from .container import Container
from .guest import Guest, GuestError, Result
from .images import Images, prepare

__all__ = ["Container", "Guest", "GuestError", "Images", "Result", "prepare"]
