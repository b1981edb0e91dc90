"""Finds the signature of an image: beside the checksum files that list it, then beside the image.

The checksum files are asked for side by side, as for an image without a signature, then the signatures of those that
list the image. Signatures are checked in the order of the files; the first one that is right decides.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import trio

from provisioner.config import SUFFIXES
from provisioner.contracts import MIB, Checksum
from provisioner.contracts.errors import (
    ImageError,
    InvalidRequestError,
    ProvisionerError,
    RemoteDeniedError,
    RemoteNotFoundError,
    RemoteUnavailableError,
    SignatureError,
)
from provisioner.contracts.source import closing_chunks
from provisioner.download.checksum_lookup import MAX_SECONDS, SIDE_BY_SIDE
from provisioner.download.checksum_names import ChecksumFile, checksum_files, files_of_patterns
from provisioner.download.checksum_text import ChecksumText
from provisioner.download.text_lines import TextLines
from provisioner.signatures import cosign, minisign, openpgp
from provisioner.signatures.proof import CosignImage, MinisignImage, OpenPgpImage, Proof, SignedChecksum

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from provisioner.config import SignatureSettings
    from provisioner.contracts import ImageSource, ImageUrl, Signer
    from provisioner.signatures.keys import Key

# Of a signed file, and of a signature. Lists of checksums that are signed have some 10 KiB, Sigstore's bundles too.
MAX_SIZE, MAX_SIGNATURE = MIB, MIB // 16
_NAMES = {"openpgp": "OpenPGP", "minisign": "minisign", "cosign": "cosign"}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a signature may be. ``signatures`` is empty for a text that must contain its signature."""

    signed: ChecksumFile
    signatures: tuple[ImageUrl, ...]
    is_image: bool = False


@dataclass(slots=True)
class _Search:
    settings: SignatureSettings
    key: Key
    source: ImageSource
    image_url: ImageUrl
    known: Checksum | None
    missing: list[str] = field(default_factory=list)
    useless: list[str] = field(default_factory=list)
    failures: list[SignatureError] = field(default_factory=list)
    temporary: bool = False

    async def run(self) -> Proof:
        """Return the first signature that counts. Raises SignatureError, RemoteUnavailableError."""
        configured = bool(self.settings.files)
        places = self._places()
        texts = await self._read_all(place.signed.url for place in places if not place.is_image)
        for place in places:
            text = texts.get(place.signed.url)
            if text is not None and not await self._lists_image(place.signed, text):
                del texts[place.signed.url]
        places = [place for place in places if configured or place.is_image or place.signed.url in texts]
        apart = [place for place in places if not self._is_clear_signed(texts.get(place.signed.url))]
        # A configured file may turn out to be a clear-signed list.
        limit = MAX_SIZE if configured else MAX_SIGNATURE
        signatures = await self._read_all((url for place in apart for url in place.signatures), limit)
        for place in places:
            proof = await self._try(place, texts.get(place.signed.url), signatures)
            if proof is not None:
                return proof
        raise self._failure()

    def _places(self) -> list[Place]:
        suffixes = SUFFIXES[self.settings.kind]
        if self.settings.files:
            return [self._configured(file) for file in files_of_patterns(self.image_url, self.settings.files)]
        files = checksum_files(self.image_url, self.source.checksum_files())
        places = [Place(file, tuple(_beside(file.url, suffixes))) for file in files]
        image = ChecksumFile(self.image_url, None, is_sidecar=True)
        return [*places, Place(image, tuple(_beside(self.image_url, suffixes)), is_image=True)]

    def _configured(self, file: ChecksumFile) -> Place:
        """Return the place of a configured file: the signed file has its name without the suffix."""
        for suffix in sorted(SUFFIXES[self.settings.kind], key=len, reverse=True):
            if file.url.path.endswith(suffix):
                signed = file.url.with_path(file.url.path.removesuffix(suffix))
                is_image = signed.without_query == self.image_url.without_query
                return Place(replace(file, url=signed), (file.url,), is_image=is_image)
        return Place(file, ())

    def _is_clear_signed(self, text: bytes | None) -> bool:
        return self.settings.kind == "openpgp" and text is not None and openpgp.is_clear_signed(text)

    async def _read_all(self, urls: Iterable[ImageUrl], limit: int = MAX_SIZE) -> dict[ImageUrl, bytes]:
        """Return the contents of the files that exist, of at most ``limit`` bytes each, asking for some at once."""
        found: dict[ImageUrl, bytes] = {}
        at_once = trio.CapacityLimiter(SIDE_BY_SIDE)

        async def read(url: ImageUrl) -> None:
            async with at_once:
                try:
                    found[url] = await _read(self.source, url, limit)
                except (RemoteNotFoundError, RemoteDeniedError):
                    # Without permission to list, object stores report a missing object as denied.
                    self.missing.append(url.file_name)
                except ProvisionerError as error:
                    self.useless.append(f"{url.file_name}: {error.message}")
                    self.temporary = self.temporary or error.temporary

        async with trio.open_nursery() as nursery:
            for url in dict.fromkeys(urls):
                if self.source.owns(url):
                    nursery.start_soon(read, url)
                elif self.settings.files:
                    self.useless.append(f"{url} belongs to another source")
        return found

    async def _lists_image(self, file: ChecksumFile, text: bytes) -> bool:
        try:
            await self._checksum(file, text)
        except ImageError as error:
            self.useless.append(f"{file.name}: {error.message}")
            return False
        return True

    async def _checksum(self, file: ChecksumFile, text: bytes) -> Checksum:
        """Return the image's checksum in a text. Raises ImageError.

        A line that names another file does not count, even alone: the text may be the signed one of another image.
        """
        parsed = ChecksumText(self.image_url.file_name, file.algorithm, file.is_sidecar, self.image_url.path)
        found = await trio.to_thread.run_sync(_parse, parsed, text)
        if found is None:
            raise ImageError(f"it does not list {self.image_url.file_name}")
        return found

    async def _try(self, place: Place, text: bytes | None, signatures: Mapping[ImageUrl, bytes]) -> Proof | None:
        """Return what the signatures of one place prove; None if none of them counts."""
        if text is not None and self._is_clear_signed(text):
            return await self._attempt(place, place.signed.url, text, None)
        found = [url for url in place.signatures if url in signatures]
        if text is not None and not found:
            self.useless.append(f"{place.signed.name} is not signed")
        for url in found:
            content = signatures[url]
            if text is not None or place.is_image or self._is_clear_signed(content):
                proof = await self._attempt(place, url, content, text)
                if proof is not None:
                    return proof
        return None

    async def _attempt(self, place: Place, url: ImageUrl, content: bytes, text: bytes | None) -> Proof | None:
        """Return what the signature at ``url`` proves; None if it does not count. ``text``: what it signs, if any."""
        where = f"the signature {url}"
        try:
            if self._is_clear_signed(content):
                signed, signer = await openpgp.check_clear_signed(content, self.key, where)
                return SignedChecksum(where, self.key, await self._checksum(place.signed, signed), signer)
            if text is None:
                return await self._of_image(content, where)
            signer = await self._signer(content, text, where)
            return SignedChecksum(where, self.key, await self._checksum(place.signed, text), signer)
        except SignatureError as error:
            self.failures.append(error)
        except ImageError as error:
            self.failures.append(SignatureError(f"what {where} signs is of no use: {error.message}"))
        return None

    async def _signer(self, content: bytes, text: bytes, where: str) -> Signer:
        """Return who signed a text. Raises SignatureError."""
        if self.settings.kind == "openpgp":
            return await openpgp.check_detached(content, text, self.key, where)
        parse = minisign.parse if self.settings.kind == "minisign" else cosign.parse
        return await trio.to_thread.run_sync(lambda: parse(content, self.key, where).check_text(text, self.key, where))

    async def _of_image(self, content: bytes, where: str) -> Proof:
        """Return a signature of the image itself. Raises SignatureError."""
        if self.settings.kind == "openpgp":
            return OpenPgpImage(where, self.key, content)
        if self.settings.kind == "minisign":
            return _minisign_image(minisign.parse(content, self.key, where), self.key, where)
        return _cosign_image(cosign.parse(content, self.key, where), self.key, where, self.known)

    def _failure(self) -> ProvisionerError:
        if self.failures:
            more = len(self.failures) - 1
            others = f" ({more} more did not count either)" if more else ""
            return SignatureError(f"{self.failures[0].message}{others}")
        tried = list(dict.fromkeys(self.useless))
        if self.missing:
            tried.append(f"not found: {', '.join(sorted(dict.fromkeys(self.missing)))}")
        what = f"no {_NAMES[self.settings.kind]} signature was found for {self.image_url}: "
        if self.temporary:
            return RemoteUnavailableError(what + "; ".join(tried))
        return SignatureError(
            f"{what}{'; '.join(tried) or 'no name was looked for'}. Name the publisher's file in files of the "
            "signature's table, or demand no signature of images that have none"
        )


async def search(
    settings: SignatureSettings, key: Key, source: ImageSource, image_url: ImageUrl, known: Checksum | None = None
) -> Proof:
    """Return the signature that the settings demand of an image.

    ``known``: the checksum of the request. Raises SignatureError if there is none that counts; RemoteUnavailableError
    if asking again may help.
    """
    return await _Search(settings, key, source, image_url, known).run()


def _minisign_image(signature: minisign.MinisignSignature, key: Key, where: str) -> Proof:
    if not signature.prehashed:
        raise SignatureError(
            f"{where} is a legacy one, of the whole image, which is not supported; the publisher can sign with "
            "'minisign -SH', or sign a checksum file"
        )
    return MinisignImage(where, key, signature)


def _cosign_image(bundle: cosign.Bundle, key: Key, where: str, known: Checksum | None) -> Proof:
    if key.ecdsa is None:
        raise SignatureError(
            f"{where} is of the whole image, as those of Ed25519 keys are, which is not supported; the publisher can "
            "sign a checksum file, or use an ECDSA key"
        )
    sha256 = bundle.sha256
    if known is not None and known.algorithm == "sha256":
        sha256 = known.hex
    if sha256 is None:
        return CosignImage(where, key, bundle)
    return SignedChecksum(where, key, Checksum("sha256", sha256), bundle.check_digest(sha256, key, where))


def _parse(parsed: ChecksumText, text: bytes) -> Checksum | None:
    lines = TextLines()
    for piece in lines.feed(text):
        for line in piece:
            parsed.feed(line)
    for line in lines.end():
        parsed.feed(line)
    return parsed.listed()


def _beside(url: ImageUrl, suffixes: Sequence[str]) -> Iterable[ImageUrl]:
    for suffix in suffixes:
        try:
            yield url.with_path(url.path + suffix)
        except InvalidRequestError:
            continue


async def _read(source: ImageSource, url: ImageUrl, limit: int) -> bytes:
    content = bytearray()
    try:
        with trio.fail_after(MAX_SECONDS):
            async with source.open(url) as stream, closing_chunks(stream) as chunks:
                async for chunk in chunks:
                    content += chunk
                    if len(content) > limit:
                        raise ImageError(f"it is too large for a signed file or a signature: over {limit // 1024} KiB")
    except trio.TooSlowError as error:
        raise RemoteUnavailableError(f"not received within {MAX_SECONDS:g} s") from error
    return bytes(content)
