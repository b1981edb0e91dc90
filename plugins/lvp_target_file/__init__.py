"""The ``file`` block target: sparse raw files in a folder, such as that of a libvirt ``dir`` pool.

::

    [targets.images]
    plugin = "file"
    directory = "/var/lib/libvirt/images"

Volume ``web01`` is the file ``web01.raw``. Where it came from is kept in an extended attribute of the file
itself: it can neither outlive the file nor be taken for another's. Volumes under construction stand in
``.lvp/stage`` below the folder, on the same filesystem, under a name that begins with their job's id.
"""

from collections.abc import Sequence

from lvp_target_file.settings import FileSettings
from lvp_target_file.target import FileTarget
from provisioner.contracts import BackEnd, BlockTarget, hookimpl

__all__ = ["FileSettings", "FileTarget", "lvp_block_targets"]


@hookimpl
def lvp_block_targets() -> Sequence[BackEnd[BlockTarget]]:
    """Bring the file target."""
    return [BackEnd("file", FileTarget, FileSettings)]
