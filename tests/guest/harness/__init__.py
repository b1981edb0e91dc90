"""The guest harness: boots a small Debian with real LVM and dm-thin under qemu, and controls it from outside.

Its interface is `Guest`, a context manager for one virtual machine, and `prepare`, which builds everything that a boot
needs. `Container` runs the same Debian on this machine's own kernel, for tests that need systemd but no LVM.
It needs only the standard library, and apt to install missing packages.
"""

from .container import Container
from .guest import Guest, GuestError, Result
from .images import Images, prepare

__all__ = ["Container", "Guest", "GuestError", "Images", "Result", "prepare"]
