"""The converter: one qemu-img process per image, monitored for progress."""

from __future__ import annotations

import errno
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, ClassVar

import structlog
import trio

from lvp_convert_qemu import commands
from lvp_convert_qemu.errors import as_error
from lvp_convert_qemu.verify import examine
from provisioner.contracts import Converter, Device, Finding, ImageView, blockdev, run_long, run_tool, undoing
from provisioner.contracts.errors import ConvertError, ImageTooLargeError, ToolError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from lvp_convert_qemu.settings import QemuSettings
    from provisioner.contracts import BackEndContext

_in_thread = trio.to_thread.run_sync
log = structlog.get_logger(__name__)

_PROBE_TIMEOUT = 30.0
_FIX = {
    "files": "boot a kernel >= 5.13 with landlock in lsm=, and allow landlock_* in the service's SystemCallFilter",
    "network": "boot a kernel with CONFIG_SECCOMP_FILTER",
}


class QemuConverter(Converter):
    """Runs ``qemu-img convert``. It needs the whole image, so it waits for the download."""

    formats: ClassVar[frozenset[str]] = commands.FORMATS

    def __init__(self, settings: QemuSettings, context: BackEndContext) -> None:
        self._settings = settings
        self._name = context.name
        self._missing: list[str] | None = None

    async def convert(self, view: ImageView, device: Device, report: Callable[[int], None]) -> None:
        if view.virtual_size > device.size_bytes:
            raise ImageTooLargeError(
                f"the image's disk has {view.virtual_size} bytes, but the volume has only {device.size_bytes}"
            )
        await view.arrived(0, view.size)
        await self._log_missing_layers()
        await examine(self._settings, view)
        async with _opened(device.path) as device_fd:
            await self._run(view, device, device_fd, report)
            # qemu-img flushes at the end, so this is free, but does not rely on the version.
            await run_long(_sync, device_fd)

    async def diagnose(self) -> Sequence[Finding]:
        try:
            missing = await self._lacking()
        except ToolError as error:
            return [Finding(False, f"the sandbox of qemu-img: {error.message}", "see docs/security.md")]
        return [
            Finding(False, f"the sandbox of qemu-img lacks a layer: {layer}", _FIX.get(layer.partition(":")[0], ""))
            for layer in missing
        ] or [Finding(True, "the sandbox of qemu-img is complete: files, network, privileges, memory", "")]

    async def _log_missing_layers(self) -> None:
        if self._missing is None:
            self._missing = await self._lacking()
            for layer in self._missing:
                log.warning("qemu-img runs without a layer of its sandbox", converter=self._name, layer=layer)

    async def _lacking(self) -> list[str]:
        """Return the layers of the sandbox that this host lacks, each as ``name: reason``."""
        argv = commands.probe(self._settings)
        return (await run_tool(argv, name="the sandbox of qemu-img", timeout=_PROBE_TIMEOUT)).stdout.splitlines()

    async def _run(self, view: ImageView, device: Device, device_fd: int, report: Callable[[int], None]) -> None:
        argv = commands.convert(
            self._settings,
            view.fd,
            view.format,
            device_fd,
            is_block=blockdev.is_block_device(device_fd),
            reads_zero=device.reads_zero,
            direct=await _in_thread(_takes_direct, device_fd),
            size=view.virtual_size if view.format == "raw" and view.virtual_size < view.size else None,
        )
        progress = commands.Progress(view.virtual_size, report)
        stall = float(self._settings.stall_timeout)
        with trio.move_on_after(stall) as watch:

            def on_output(chunk: bytes) -> None:
                if progress.feed(chunk):
                    watch.deadline = trio.current_time() + stall

            try:
                await run_tool(argv, name="qemu-img", pass_fds=[view.fd, device_fd], on_output=on_output)
            except ToolError as error:
                raise as_error(error) from error
        if watch.cancelled_caught:
            raise ConvertError(f"qemu-img made no progress for {stall:g} s and was stopped (stall_timeout)")
        progress.advance(view.virtual_size)


@asynccontextmanager
async def _opened(path: str) -> AsyncIterator[int]:
    """Open the device; keep it open until its data is on stable storage."""
    try:
        fd = await _in_thread(os.open, path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise ConvertError(f"the volume's device {path} cannot be opened: {error.strerror}") from error
    try:
        yield fd
    finally:
        with undoing(f"close {path}"):  # the last close of a block device writes its dirty pages
            await run_long(os.close, fd)


def _takes_direct(device_fd: int) -> bool:
    """Return whether the device supports direct I/O; some filesystems do not."""
    try:
        os.close(os.open(f"/proc/self/fd/{device_fd}", os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise ConvertError(f"the volume's device cannot be opened: {error.strerror}") from error
    return True


def _sync(device_fd: int) -> None:
    try:
        os.fdatasync(device_fd)
    except OSError as error:
        raise ConvertError(f"the volume could not be flushed to stable storage: {error.strerror}") from error
