"""Remembers which checksum file decided for an image, so that a job asks for two things instead of a dozen, at once.

Only strong version tags count: the remembered checksum is used if the server has the same tag for the image and for
the checksum file. Anything else is looked up anew. A better place for a checksum that appears beside an unchanged image
and an unchanged file is noticed after RECHECK seconds.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from provisioner.contracts.errors import ProvisionerError
from provisioner.contracts.tasks import run_both
from provisioner.download.checksum_lookup import SIDE_BY_SIDE, Found, completed, discover, from_files, from_manifest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import TypeVar

    from provisioner.contracts import ImageSource, ImageUrl, RemoteImage

    T = TypeVar("T")
    Stat = Callable[[], Awaitable[RemoteImage]]
    Key = tuple[str, tuple[str, ...]]

# Images to remember; one takes about a KiB.
MOST_IMAGES = 1024
RECHECK = 600.0
# Requests at once for an image that had no checksum: all names, so that their absence costs one round trip.
ALL_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Known:
    """What was found for an image with that version; ``at`` is a time of trio's clock."""

    version: str | None
    found: Found
    at: float


class ChecksumMemory:
    """Looks up images and their checksums. In memory only, so the first job after a start asks for everything."""

    def __init__(self) -> None:
        self._known: OrderedDict[Key, Known] = OrderedDict()

    async def look_up(self, source: ImageSource, url: ImageUrl, stat: Stat) -> tuple[RemoteImage, Found]:
        """Return the image as ``stat`` does, and its checksum, asking for both at once.

        Raises SourceError; the one of ``stat`` if both fail.
        """
        if source.by_digest:
            remote = await stat()
            return remote, await discover(source, url, remote)
        key = (url.text, tuple(source.checksum_files()))
        known = self._recall(key)
        if known is not None and known.found.file is not None:
            return await self._confirm(source, url, stat, key, known)
        at_once = SIDE_BY_SIDE if known is None else ALL_AT_ONCE
        remote, files = await side_by_side(stat, lambda: from_files(source, url, at_once))
        if (manifest := from_manifest(url, remote)) is not None:
            return remote, manifest
        if isinstance(files, ProvisionerError):
            raise files
        found = await completed(source, url, remote, files, None if known is None else known.found.weak)
        self._note(key, remote, found)
        return remote, found

    def forget(self, url: ImageUrl) -> None:
        """Look for the image's checksum anew next time: it did not fit, so a tag may have lied."""
        for key in [key for key in self._known if key[0] == url.text]:
            del self._known[key]

    async def _confirm(
        self, source: ImageSource, url: ImageUrl, stat: Stat, key: Key, known: Known
    ) -> tuple[RemoteImage, Found]:
        """Ask only whether the image and its checksum file are unchanged; if not, look for the checksum anew."""
        file = known.found.file
        assert file is not None
        remote, now = await side_by_side(stat, lambda: source.stat(file))
        unchanged = not isinstance(now, ProvisionerError) and now.version == known.found.file_version
        if unchanged and remote.version == known.version:
            return remote, known.found
        self._known.pop(key, None)
        found = await discover(source, url, remote)
        self._note(key, remote, found)
        return remote, found

    def _recall(self, key: Key) -> Known | None:
        known = self._known.get(key)
        if known is None:
            return None
        if trio.current_time() - known.at > RECHECK:
            del self._known[key]
            return None
        self._known.move_to_end(key)
        return known

    def _note(self, key: Key, remote: RemoteImage, found: Found) -> None:
        """Remember what was found if the version tags are strong, or that no file had a checksum."""
        if found.file is not None:
            strong = remote.version is not None and remote.version.startswith('"')
            if not strong or found.file_version is None:
                return
        self._known[key] = Known(remote.version, found, trio.current_time())
        while len(self._known) > MOST_IMAGES:
            self._known.popitem(last=False)


async def side_by_side(stat: Stat, other: Callable[[], Awaitable[T]]) -> tuple[RemoteImage, T | ProvisionerError]:
    """Run both at once; return both results, or the other's error. An error of ``stat`` is raised at once."""
    image: list[RemoteImage] = []
    results: list[T | ProvisionerError] = []

    async def ask_image() -> None:
        image.append(await stat())

    async def ask() -> None:
        try:
            results.append(await other())
        except ProvisionerError as error:
            results.append(error)

    await run_both(ask_image, ask)
    return image[0], results[0]
