"""Publishes verified files in the cache, gives cached images the names of uploads, and records who signed them."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import msgspec

from provisioner.cache.download import Download
from provisioner.cache.image import StoredImage
from provisioner.cache.stored_signature import check_stored_signature
from provisioner.contracts import Checksum
from provisioner.contracts.threads import run_long

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import trio

    from provisioner.cache.catalog import Catalog
    from provisioner.cache.entry import Entry
    from provisioner.cache.image import CachedImage
    from provisioner.cache.stored_images import InThread
    from provisioner.cache.uploads import Upload
    from provisioner.contracts import RemoteImage, Signer
    from provisioner.download.hashing import Hashes
    from provisioner.download.inspection import ImageInfo
    from provisioner.signatures import Proof


class Publisher:
    """The last step of downloads and uploads. ``changing`` is held while the catalog changes."""

    def __init__(self, catalog: Catalog, in_thread: InThread, changing: trio.Lock) -> None:
        self._catalog = catalog
        self._in_thread = in_thread
        self._changing = changing

    async def download(self, download: Download, hashes: Hashes, info: ImageInfo) -> None:
        """Publish a download; its users hold the entry from the moment at which others find it."""

        def appeared(entry: Entry) -> None:
            download.entry = entry
            self._catalog.users.hold(entry.sha256, download.users)

        growing_file, remote = download.growing_file, download.expectation.remote
        proof, signer = download.expectation.proof, download.signer
        signature = (signer, proof.key.id) if proof is not None and signer is not None else None
        await self._publish(growing_file.fd, download.partial, remote, hashes, info, appeared, signature=signature)

    async def upload(self, fd: int, partial: Path, upload: Upload, hashes: Hashes, info: ImageInfo) -> Entry:
        """Publish an upload; return its entry."""
        return await self._publish(fd, partial, upload.remote, hashes, info, pinned=upload.pinned)

    async def _publish(
        self,
        fd: int,
        partial: Path,
        remote: RemoteImage,
        hashes: Hashes,
        info: ImageInfo,
        appeared: Callable[[Entry], None] = lambda _entry: None,
        *,
        pinned: bool = False,
        signature: tuple[Signer, str] | None = None,
    ) -> Entry:
        sha256 = hashes.digests["sha256"]
        # Outside the shared thread, which a large image on a slow disk would block for everyone.
        await run_long(os.fsync, fd)
        async with self._changing:
            known, damaged = self._catalog.get(sha256), self._catalog.is_damaged(sha256)
            entry = await self._in_thread(
                lambda files: files.publish(
                    fd, partial, remote, hashes, info, known, damaged=damaged, pinned=pinned, signature=signature
                )
            )
            # No await from here on, so that the entry and its users appear together.
            self._catalog.add(entry, remote.url.text, remote.version)
            appeared(entry)
        return entry

    async def prove(self, image: CachedImage, proof: Proof) -> Signer:
        """Return who signed the image; wait for it if it is downloading. A cached one is read only if necessary.

        Raises SignatureError, DamagedImageError, and the download's errors.
        """
        if isinstance(image, StoredImage):
            known = self._catalog.get(image.entry.sha256) or image.entry
            if known.signed_by is not None and known.signed_under == proof.key.id:
                return known.signed_by
            signer, sha512 = await check_stored_signature(image, proof)
            await self.note_signature(image.entry.sha256, signer, proof, sha512)
            return signer
        assert isinstance(image, Download)
        await image.verified()
        assert image.signer is not None, "a download with a proof is published only with a signer"
        return image.signer

    async def note_signature(self, sha256: str, signer: Signer, proof: Proof, sha512: str | None = None) -> None:
        """Record who signed a cached image."""
        async with self._changing:
            entry = self._catalog.get(sha256)
            if entry is None:
                return
            signed = msgspec.structs.replace(
                entry, signed_by=signer, signed_under=proof.key.id, sha512=entry.sha512 or sha512
            )
            if signed != entry:
                await self._in_thread(lambda files: files.index.put(signed))
                self._catalog.change(signed)

    async def use_cached(self, upload: Upload, may_use: Callable[[str], bool] | None) -> Entry | None:
        """Give a cached image the name of an upload, without receiving it; return its entry, None if it is not cached.

        ``may_use``: as in ``ImageCache.find``. A caller that may not use the cached image has to send its bytes.
        """
        async with self._changing:
            entry = self._catalog.find(Checksum("sha256", upload.sha256), upload.url.text, None, may_use)
            if entry is None or entry.size != upload.size:
                return None
            named = msgspec.structs.replace(entry, pinned=entry.pinned or upload.pinned, last_used_at=time.time())
            if not await self._in_thread(lambda files: files.record_url(named, upload.url.text, upload.digest)):
                return None
            self._catalog.add(named, upload.url.text, upload.digest)
        return named
