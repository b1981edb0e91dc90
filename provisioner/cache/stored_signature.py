"""Checks the signature of an image that is in the cache already, so that it need not be downloaded again."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import trio

from provisioner.contracts import MIB
from provisioner.contracts.errors import DamagedImageError, SignatureError
from provisioner.contracts.threads import run_long

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from provisioner.cache.image import StoredImage
    from provisioner.contracts import Signer
    from provisioner.signatures import Proof


async def check_stored_signature(image: StoredImage, proof: Proof) -> tuple[Signer, str | None]:
    """Return who signed a cached image, and its SHA-512 if that is known now. Reads the file only if necessary.

    Raises SignatureError; DamagedImageError if the file is no longer what was verified.
    """
    entry = image.entry
    digests = {"sha256": entry.sha256} | ({"sha512": entry.sha512} if entry.sha512 else {})
    missing = proof.needs - digests.keys()
    if missing:
        found = await run_long(_digests, image.fd, {"sha256", *missing}, trio.from_thread.check_cancelled)
        if found["sha256"] != entry.sha256:
            raise DamagedImageError(f"the cached image {entry.file_name} does not match its digest")
        digests |= found
    try:
        return await proof.check(digests, image.fd), digests.get("sha512")
    except SignatureError:
        await image.checked()  # the file may be to blame, which the cache then drops
        raise


def _digests(fd: int, algorithms: Iterable[str], check: Callable[[], None]) -> dict[str, str]:
    hashes = {name: hashlib.new(name) for name in algorithms}
    buffer, position = memoryview(bytearray(MIB)), 0
    while got := os.preadv(fd, [buffer], position):
        check()
        for one in hashes.values():
            one.update(buffer[:got])
        position += got
    return {name: one.hexdigest() for name, one in hashes.items()}
