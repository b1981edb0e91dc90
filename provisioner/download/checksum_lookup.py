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

    _Answer = tuple[Checksum, str | None] | ProvisionerError

__all__ = ["Found", "completed", "discover", "from_files", "from_manifest", "parse"]

# A minute is enough for a MiB at 17 KiB/s. min_rate alone would allow hours, and the job would occupy a worker.
MAX_SECONDS = 60.0
# Requests at once. Few enough for a small server and for the source's connections.
SIDE_BY_SIDE = 6


@dataclass(slots=True)
class Found:
    """What was found: the checksum and where it comes from; or why there is none.

    ``missing`` are the names of files that do not exist; ``useless`` has what is wrong with others, and their names.
    ``file`` is the checksum file, None if the checksum is from elsewhere; ``file_version`` is its strong version tag.
    ``weak`` is like ``useless``, of digests that are too weak; None if those files were not asked for.
    """

    checksum: Checksum | None = None
    origin: str = ""
    missing: list[str] = field(default_factory=list)
    useless: dict[str, list[str]] = field(default_factory=dict)
    # Whether a server is temporarily down, so that asking again may help.
    temporary: bool = False
    file: ImageUrl | None = None
    file_version: str | None = None
    weak: dict[str, list[str]] | None = None

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
    if remote is not None and (found := from_manifest(image_url, remote)) is not None:
        return found
    return await completed(source, image_url, remote, await from_files(source, image_url))


def from_manifest(image_url: ImageUrl, remote: RemoteImage) -> Found | None:
    """Return the digest by which a registry finds the image; None for a server of files."""
    if remote.digest is None or remote.version != str(remote.digest):
        return None
    return Found(remote.digest, f"the manifest of {image_url}")


async def from_files(source: ImageSource, image_url: ImageUrl, at_once: int = SIDE_BY_SIDE) -> Found:
    """Look for the checksum in the files beside the image, asking for ``at_once`` of them at a time."""
    return await _first(source, image_url, checksum_files(image_url, source.checksum_files()), at_once)


async def completed(
    source: ImageSource,
    image_url: ImageUrl,
    remote: RemoteImage | None,
    found: Found,
    weak: dict[str, list[str]] | None = None,
) -> Found:
    """Return what the files gave; without a checksum the server's own digest, else also which weak ones there are.

    ``weak``: what an earlier search found of these. Raises RemoteUnavailableError if asking again may help.
    """
    if found.checksum is None and remote is not None and remote.digest is not None:
        return Found(remote.digest, f"the server's own headers for {image_url}")
    if found.checksum is not None:
        return found
    if found.temporary:
        raise RemoteUnavailableError(f"no checksum was found for {image_url}: {found.reasons()}")
    if weak is None:
        asked = await _first(source, image_url, weak_checksum_files(image_url), SIDE_BY_SIDE)
        weak = {reason: names for reason, names in asked.useless.items() if "too weak" in reason}
    found.weak = weak
    found.useless |= weak
    return found


async def _first(source: ImageSource, image_url: ImageUrl, files: Sequence[ChecksumFile], at_once: int) -> Found:
    """Ask for the files, ``at_once`` at a time; return the first one's checksum, in the order of ``files``."""
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
        for _ in range(at_once):
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
            reason = answer.message.removesuffix(f" for {file.url}").removeprefix(f"{file.url}: ")
            reason = reason.replace(str(file.url), "it")
            found.useless.setdefault(reason, []).append(file.name)
            found.temporary = found.temporary or answer.temporary
        elif answer is not None:
            checksum, version = answer
            return Found(checksum, str(file.url), file=file.url, file_version=version)
    return found


async def _read(source: ImageSource, image_url: ImageUrl, file: ChecksumFile) -> tuple[Checksum, str | None]:
    """Return the image's checksum from one file, and the file's strong version.

    Raises a ProvisionerError that says what is wrong with it.
    """
    text = ChecksumText(image_url.file_name, file.algorithm, file.is_sidecar, image_url.path)
    try:
        with trio.fail_after(MAX_SECONDS):
            async with source.open(file.url) as stream, closing_chunks(stream) as chunks:
                await _feed(text, chunks)
                version = stream.strong_version
    except trio.TooSlowError as error:
        raise RemoteUnavailableError(f"not received within {MAX_SECONDS:g} s") from error
    return _result(text), version


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
