"""What proves that an image is its publisher's: a signed checksum, or a signature of the image itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from provisioner.contracts.errors import SignatureError
from provisioner.signatures import openpgp

if TYPE_CHECKING:
    from collections.abc import Mapping

    from provisioner.contracts import Checksum, Signer
    from provisioner.signatures.cosign import Bundle
    from provisioner.signatures.keys import Key
    from provisioner.signatures.minisign import MinisignSignature


@dataclass(frozen=True, slots=True)
class Proof(ABC):
    """A signature to check an image with. ``where`` names it in messages."""

    where: str
    key: Key

    # What ``check`` needs the digests of the whole image for.
    algorithms: ClassVar[frozenset[str]] = frozenset()

    @property
    def needs(self) -> frozenset[str]:
        """Return the algorithms of the digests that ``check`` needs."""
        return self.algorithms

    @property
    def signed(self) -> tuple[Checksum, Signer] | None:
        """Return the image's checksum and who signed it, if that is known before the image is there."""
        return None

    @abstractmethod
    async def check(self, digests: Mapping[str, str], fd: int) -> Signer:
        """Return who signed the image with these ``digests`` (hex, by algorithm) in the file ``fd``.

        Raises SignatureError.
        """


@dataclass(frozen=True, slots=True)
class SignedChecksum(Proof):
    """A checksum that a verified signature covers."""

    checksum: Checksum
    signer: Signer

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.checksum.algorithm})

    @property
    def signed(self) -> tuple[Checksum, Signer]:
        return self.checksum, self.signer

    async def check(self, digests: Mapping[str, str], fd: int) -> Signer:
        del fd
        found = digests[self.checksum.algorithm]
        if found != self.checksum.hex:
            raise SignatureError(
                f"the image's {self.checksum.algorithm} is {found}, but {self.checksum.hex} was signed ({self.where})"
            )
        return self.signer


@dataclass(frozen=True, slots=True)
class OpenPgpImage(Proof):
    """An OpenPGP signature of the image. gpgv reads the image once more: its digest includes more than the content."""

    signature: bytes

    async def check(self, digests: Mapping[str, str], fd: int) -> Signer:
        del digests
        return await openpgp.check_detached(self.signature, fd, self.key, self.where)


@dataclass(frozen=True, slots=True)
class MinisignImage(Proof):
    """A prehashed minisign signature of the image."""

    signature: MinisignSignature
    algorithms: ClassVar[frozenset[str]] = frozenset({"blake2b"})

    async def check(self, digests: Mapping[str, str], fd: int) -> Signer:
        del fd
        return self.signature.check(bytes.fromhex(digests["blake2b"]), self.key, self.where)


@dataclass(frozen=True, slots=True)
class CosignImage(Proof):
    """A cosign signature of the image by an ECDSA key."""

    bundle: Bundle
    algorithms: ClassVar[frozenset[str]] = frozenset({"sha256"})

    async def check(self, digests: Mapping[str, str], fd: int) -> Signer:
        del fd
        return self.bundle.check_digest(digests["sha256"], self.key, self.where)
