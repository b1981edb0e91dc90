"""The source of uploaded images: ``upload://cache/NAME`` stands for the image that was last uploaded as NAME.

Such an image is only in the cache. If it was removed from there, nothing can fetch it again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from provisioner.contracts import Checksum, ImageSource, RemoteImage
from provisioner.contracts.errors import RemoteNotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from provisioner.cache.entry import Entry
    from provisioner.contracts import ImageStream, ImageUrl

SCHEME, HOST = "upload", "cache"
# The name among the sources. No configured one has it, and a caller's limits can name it: it is a prefix of urls.
NAME = f"{SCHEME}://{HOST}"


class UploadSource(ImageSource):
    """Finds uploaded images in the cache. ``named`` returns the entry that a url stands for, None if there is none."""

    by_digest = True

    def __init__(self, named: Callable[[str], Entry | None]) -> None:
        self._named = named

    def owns(self, url: ImageUrl) -> bool:
        return (url.scheme, url.host) == (SCHEME, HOST)

    def prefixes(self) -> Sequence[str]:
        return [f"{SCHEME}://{HOST}/"]

    def look_up(self, url: ImageUrl) -> Entry:
        """Return the image that ``url`` stands for. Raises RemoteNotFoundError."""
        entry = self._named(url.text)
        if entry is None:
            raise _missing(url)
        return entry

    async def stat(self, url: ImageUrl) -> RemoteImage:
        entry = self.look_up(url)
        return RemoteImage(url, entry.size, entry.digest, accepts_ranges=True, digest=Checksum("sha256", entry.sha256))

    def open(
        self,
        url: ImageUrl,
        start: int = 0,
        stop: int | None = None,
        version: str | None = None,
    ) -> AbstractAsyncContextManager[ImageStream]:
        """Fail: what is in the cache is not fetched, and nothing else has the image."""
        del start, stop, version
        raise _missing(url)


def _missing(url: ImageUrl) -> RemoteNotFoundError:
    name = url.path.removeprefix("/")
    return RemoteNotFoundError(f"there is no uploaded image {name} in the cache; upload it again: lvp image push")
