"""The qemu-img converter's settings, each default with its reason."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from provisioner.contracts import AbsolutePath, ByteSize, Duration


class QemuSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of the converter ``qemu-img``."""

    path: AbsolutePath = AbsolutePath("/usr/bin/qemu-img")

    # Requests in flight. 8 to 16 measured best with out-of-order writes; 16 is all that qemu-img takes.
    coroutines: Annotated[int, msgspec.Meta(ge=1, le=16)] = 8

    # Bytes a second, for each conversion.
    rate_limit: ByteSize | None = None

    # Whether qemu-img also runs on a host whose kernel lacks a layer of its sandbox. Images were inspected before,
    # and some supported kernels come without Landlock: the log and ``lvp doctor`` say what is missing.
    sandbox: Literal["best-effort", "required"] = "best-effort"

    # Bound of its address space, against images made to exhaust the host (0: none). It needs far less (16 MiB for a
    # cloud image), but threads' stacks and the tables of images of many TiB with small clusters count as well.
    memory_limit: ByteSize = ByteSize(2 * 1024**3)

    # How long it may make no progress. It speaks once for each percent: on a slow disk that can take minutes
    # for an image of terabytes.
    stall_timeout: Duration = Duration(600)
