"""The qemu-img converter's settings, each default with its reason."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from provisioner.contracts import AbsolutePath, ByteSize, Duration


class QemuSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of the converter ``qemu-img``."""

    path: AbsolutePath = AbsolutePath("/usr/bin/qemu-img")

    # Requests in flight. 8 to 16 measured best with out-of-order writes; qemu-img allows at most 16.
    coroutines: Annotated[int, msgspec.Meta(ge=1, le=16)] = 8

    # Bytes per second, for each conversion.
    rate_limit: ByteSize | None = None

    # Whether qemu-img may run if the kernel lacks a layer of its sandbox. Images are inspected before, and some
    # supported kernels have no Landlock; the log and ``lvp doctor`` report missing layers.
    sandbox: Literal["best-effort", "required"] = "best-effort"

    # Limit of its address space, against images made to exhaust the host (0: no limit). A cloud image needs 16 MiB;
    # thread stacks and the tables of images of many TiB with small clusters come on top.
    memory_limit: ByteSize = ByteSize(2 * 1024**3)

    # How long it may report no progress. It reports each percent, which for an image of terabytes on a slow disk can
    # take minutes.
    stall_timeout: Duration = Duration(600)
