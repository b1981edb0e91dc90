"""The ``qemu-img`` converter: writes every format that QEMU reads safely onto a device, with QEMU's own code.

::

    [converters]
    qcow2 = "qemu-img"
    vmdk = "qemu-img"

Images and devices are passed as open descriptors and the format is always explicit. No name that could be parsed as a
protocol or an option reaches the command line.
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
