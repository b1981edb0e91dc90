"""The ``file`` block target: sparse raw or qcow2 files in a folder, such as that of a libvirt ``dir`` pool.

::

    [targets.images]
    plugin = "file"
    directory = "/var/lib/libvirt/images"

Volume ``web01`` is the file ``web01.raw`` or, with ``format = "qcow2"``, ``web01.qcow2``. Its provenance is stored in
an extended attribute of the file itself, so it cannot outlive the file or be mistaken for another file's. Staged
volumes are in ``.lvp/stage`` below the folder, on the same filesystem; their names hold the installation's id and the
job's id.

On XFS and btrfs, volumes are clones of the bases in ``.lvp/base``: each holds one image, and its clones share its
blocks. On any file system, qcow2 volumes are overlays of the bases in ``.lvp/backing``, which they need.
"""

from collections.abc import Sequence

from lvp_target_file.clones import FileCloneTarget
from lvp_target_file.overlays import FileOverlayTarget, make_file_target
from lvp_target_file.settings import FileSettings
from lvp_target_file.target import FileTarget
from provisioner.contracts import BackEnd, BlockTarget, hookimpl

__all__ = [
    "FileCloneTarget",
    "FileOverlayTarget",
    "FileSettings",
    "FileTarget",
    "lvp_block_targets",
    "make_file_target",
]


@hookimpl
def lvp_block_targets() -> Sequence[BackEnd[BlockTarget]]:
    """Return the file target."""
    return [BackEnd("file", make_file_target, FileSettings)]
