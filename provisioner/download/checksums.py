"""Finds the expected digest of an image beside it: asks for every name that publishers use, side by side.

``checksum_names`` has the names and their order, ``checksum_text`` parses the texts. A checksum file is optional, so an
odd answer, such as a login page, only means that the next one is used.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from provisioner.contracts.errors import (
    ImageError,
    ProvisionerError,
    RemoteDeniedError,
    RemoteNotFoundError,
    RemoteUnavailableError,
)
from provisioner.contracts.source import closing_chunks
from provisioner.download.checksum_names import checksum_files, weak_checksum_files
from provisioner.download.checksum_text import ChecksumText, parse
from provisioner.download.text_lines import TextLines

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from provisioner.contracts import Checksum, ImageSource, ImageUrl, RemoteImage
    from provisioner.download.checksum_names import ChecksumFile

    _Answer = Checksum | ProvisionerError

__all__ = ["Found", "discover", "parse"]

# A minute is enough for a MiB at 17 KiB/s. min_rate alone would allow hours, and the job would occupy a worker.
MAX_SECONDS = 60.0
# Requests at once. Few enough for a small server and for the source's connections.
SIDE_BY_SIDE = 6


@dataclass(slots=True)
class Found:
    """What was found: the checksum and where it comes from; or why there is none.

    ``missing`` are the names of files that do not exist; ``useless`` has what is wrong with others, and their names.
    """

    checksum: Checksum | None = None
    origin: str = ""
    missing: list[str] = field(default_factory=list)
    useless: dict[str, list[str]] = field(default_factory=dict)
    # Whether a server is temporarily down, so that asking again may help.
    temporary: bool = False

    def reasons(self) -> str:
        """Return what was tried and why it did not help, as a part of a sentence."""
        found = [self.useless_files()] if self.useless else []
        if self.missing:
            found.append(f"not found: {', '.join(self.missing)}")
        return "; ".join(found) or "no name was looked for"

    def useless_files(self) -> str:
        """Return the names of the files that did not help, and what is wrong with them."""
        return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in self.useless.items())


async def discover(source: ImageSource, image_url: ImageUrl, remote: RemoteImage | None = None) -> Found:
    """Look for the checksum published beside the image; else use the digest that the server vouches for in ``remote``.

    A registry finds images by their digest, so no file is looked for. Raises RemoteUnavailableError if there is no
    checksum and asking again may help.
    """
    if remote is not None and remote.digest is not None and remote.version == str(remote.digest):
        return Found(remote.digest, f"the manifest of {image_url}")
    found = await _first(source, image_url, checksum_files(image_url, source.checksum_files()))
    if found.checksum is None and remote is not None and remote.digest is not None:
        return Found(remote.digest, f"the server's own headers for {image_url}")
    if found.checksum is not None:
        return found
    if found.temporary:
        raise RemoteUnavailableError(f"no checksum was found for {image_url}: {found.reasons()}")
    weak = await _first(source, image_url, weak_checksum_files(image_url))
    found.useless |= {reason: names for reason, names in weak.useless.items() if "too weak" in reason}
    return found


async def _first(source: ImageSource, image_url: ImageUrl, files: Sequence[ChecksumFile]) -> Found:
    """Ask for the files side by side; return the first one's checksum, in the order of ``files``."""
    files = [file for file in files if source.owns(file.url)]
    answers: list[_Answer | None] = [None] * len(files)
    waiting = iter(range(len(files)))

    async def ask(rest: trio.CancelScope) -> None:
        for number in waiting:  # shared: the next file in the order of preference
            try:
                answers[number] = await _read(source, image_url, files[number])
            except ProvisionerError as error:
                answers[number] = error
            if _is_decided(answers):
                rest.cancel(reason="a checksum was found")

    async with trio.open_nursery() as nursery:
        for _ in range(SIDE_BY_SIDE):
            nursery.start_soon(ask, nursery.cancel_scope)
    return _summary(files, answers)


def _is_decided(answers: Sequence[_Answer | None]) -> bool:
    """Whether the first file with a checksum is known: all files before it were asked in vain."""
    first = next((one for one in answers if not isinstance(one, ProvisionerError)), None)
    return first is not None


def _summary(files: Sequence[ChecksumFile], answers: Sequence[_Answer | None]) -> Found:
    found = Found()
    for file, answer in zip(files, answers, strict=True):
        if isinstance(answer, (RemoteNotFoundError, RemoteDeniedError)):
            # Without permission to list, object stores report a missing object as denied.
            found.missing.append(file.name)
        elif isinstance(answer, ProvisionerError):
            reason = answer.message.removesuffix(f" for {file.url}").replace(str(file.url), "it")
            found.useless.setdefault(reason, []).append(file.name)
            found.temporary = found.temporary or answer.temporary
        elif answer is not None:
            return Found(answer, str(file.url))
    return found


async def _read(source: ImageSource, image_url: ImageUrl, file: ChecksumFile) -> Checksum:
    """Return the image's checksum from one file. Raises a ProvisionerError that says what is wrong with it."""
    text = ChecksumText(image_url.file_name, file.algorithm, file.is_sidecar, image_url.path)
    try:
        with trio.fail_after(MAX_SECONDS):
            async with source.open(file.url) as stream, closing_chunks(stream) as chunks:
                await _feed(text, chunks)
    except trio.TooSlowError as error:
        raise RemoteUnavailableError(f"not received within {MAX_SECONDS:g} s") from error
    return _result(text)


async def _feed(text: ChecksumText, chunks: AsyncIterator[bytes]) -> None:
    lines = TextLines()
    async for chunk in chunks:
        for piece in lines.feed(chunk):
            for line in piece:
                text.feed(line)
            await trio.lowlevel.checkpoint()
    for line in lines.end():
        text.feed(line)


def _result(text: ChecksumText) -> Checksum:
    weak = text.weak
    try:
        checksum = text.result()
    except ImageError:
        if not weak:
            raise
        checksum = None
    if checksum is not None:
        return checksum
    if weak:
        raise ImageError(f"it has only the image's {' and '.join(weak)}, which is too weak")
    raise ImageError(f"it does not list {text.file_name}")
