"""Checks that QEMU and the core read the same disk from an image, and that the image is complete.

The core has already inspected the image. This second check uses the code that will convert it, on the descriptor that
will be converted.
"""

from __future__ import annotations

import json
import os
import struct
from functools import partial
from typing import TYPE_CHECKING

from lvp_convert_qemu import commands
from lvp_convert_qemu.errors import as_error, plain
from provisioner.contracts import run_tool
from provisioner.contracts.errors import CorruptImageError, ImageFormatError, ToolError, UnsafeImageError

if TYPE_CHECKING:
    from lvp_convert_qemu.settings import QemuSettings
    from provisioner.contracts import ImageView

# qemu-img check: no errors, only leaked clusters (wasted space, no damaged data), format without a check.
_SOUND = {0, 3, 63}
# Parts of a description by which bytes would come from elsewhere.
_ELSEWHERE = ("backing-filename", "full-backing-filename", "encrypted")


async def examine(settings: QemuSettings, view: ImageView) -> None:
    """Raise ImageError if ``view`` must not be converted. For raw images only the length is checked."""
    if view.format == "raw":
        if view.size < view.virtual_size:
            raise CorruptImageError(f"the image ends after {view.size} of {view.virtual_size} bytes")
        return
    examine_header(view)
    run = partial(run_tool, name="qemu-img", pass_fds=[view.fd], timeout=float(settings.stall_timeout))
    try:
        described = await run(commands.info(settings, view.fd, view.format))
        checked = await run(commands.check(settings, view.fd, view.format), check=False)
    except ToolError as error:
        raise as_error(error) from error
    try:
        about = json.loads(described.stdout)
    except (json.JSONDecodeError, RecursionError) as error:  # an endless list of snapshots; output is cut after 1 MiB
        raise CorruptImageError("qemu-img's description of the image is too long or invalid") from error
    examine_description(about, view.virtual_size)
    if checked.status not in _SOUND:
        raise CorruptImageError(f"the image is inconsistent or truncated: {plain(checked.stderr)}")


def examine_description(about: dict[str, object], virtual_size: int) -> None:
    """Compare QEMU's description of the image with the core's."""
    for key in _ELSEWHERE:
        if about.get(key):
            raise UnsafeImageError(f"the image depends on other files or keys ({key} in its description)")
    specific = about.get("format-specific")
    if isinstance(specific, dict) and "data-file" in specific.get("data", {}):
        raise UnsafeImageError("the image keeps its data in an external file")
    if about.get("virtual-size") != virtual_size:
        raise ImageFormatError(
            f"the image is ambiguous: a disk of {virtual_size} or of {about.get('virtual-size')} bytes"
        )


def examine_header(view: ImageView) -> None:
    """Reject headers that QEMU itself would accept. Raises UnsafeImageError, CorruptImageError."""
    head = os.pread(view.fd, 512, 0)
    if view.format == "vmdk" and (head[:4] != b"KDMV" or not any(head[12:20])):
        # A text descriptor, or a header that refers to one, may name any file of the host as an extent.
        raise UnsafeImageError("the vmdk image has a text descriptor, which may refer to other files")
    if view.format == "vdi" and len(head) == 512:
        data_offset, block_size, blocks = (struct.unpack_from("<I", head, at)[0] for at in (0x158, 0x178, 0x184))
        if data_offset + block_size * blocks > view.size:
            raise CorruptImageError("the vdi image ends before its last block")
