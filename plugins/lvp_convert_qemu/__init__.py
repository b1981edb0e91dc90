"""The ``qemu-img`` converter: every format QEMU reads safely, onto a device, with QEMU's own code.

::

    [converters]
    qcow2 = "qemu-img"
    vmdk = "qemu-img"

Images and devices are handed over as open descriptors, the format is always said, and no name that a program
could read as a protocol or an option ever reaches the command line.
"""

from collections.abc import Sequence

from lvp_convert_qemu.converter import QemuConverter
from lvp_convert_qemu.settings import QemuSettings
from provisioner.contracts import BackEnd, Converter, hookimpl

__all__ = ["QemuConverter", "QemuSettings", "lvp_converters"]


@hookimpl
def lvp_converters() -> Sequence[BackEnd[Converter]]:
    """Return the qemu-img converter."""
    return [BackEnd("qemu-img", QemuConverter, QemuSettings)]
