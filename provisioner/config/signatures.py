"""The settings of a demanded signature: ``[sources.NAME.signature]`` and ``[images.NAME.signature]``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

import msgspec

from provisioner.contracts import AbsolutePath, ImageUrl, refuse
from provisioner.contracts.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterator

# What publishers append to the name of the signed file. Debian and Kali; Ubuntu; openSUSE and many; Arch Linux.
SUFFIXES = {
    "openpgp": (".sign", ".gpg", ".asc", ".sig"),
    "minisign": (".minisig",),
    "cosign": (".sigstore.json", ".bundle", ".sigstore", ".cosign.bundle"),
}
_PATTERN = re.compile(r"\{(?:dir|parent)\}/(?:[A-Za-z0-9._~%/+-]|\{name\})+")


def beside(checksum_url: str, settings: SignatureSettings) -> SignatureSettings:
    """Return the settings for an image with a checksum file at ``checksum_url``: the signature is beside either."""
    clear_signed = [checksum_url] if settings.kind == "openpgp" else []
    beside = [name + suffix for name in (checksum_url, "{dir}/{name}") for suffix in SUFFIXES[settings.kind]]
    return msgspec.structs.replace(settings, files=[*clear_signed, *beside])


class SignatureSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A signature that images must have.

    ``keyring`` is a file of OpenPGP public keys, binary or armored; ``public_key`` that of a minisign key or of a
    cosign key (PEM). ``files`` are the places of the signature, as patterns such as ``{dir}/SHA512SUMS.sign`` or as
    urls; by default it is looked for beside the checksum files and beside the image.
    """

    kind: Literal["openpgp", "minisign", "cosign"]
    keyring: AbsolutePath | None = None
    public_key: AbsolutePath | None = None
    files: list[str] = msgspec.field(default_factory=list)

    def __post_init__(self) -> None:
        refuse(self._faults())

    @property
    def key_setting(self) -> str:
        """Return the name of the key that says where the public keys are."""
        return "keyring" if self.kind == "openpgp" else "public_key"

    @property
    def key_path(self) -> str:
        """Return the path of the file with the public keys."""
        return (self.keyring if self.kind == "openpgp" else self.public_key) or ""

    def _faults(self) -> Iterator[str]:
        if not self.key_path:
            yield f"{self.kind} signatures need {self.key_setting}, the file of the publisher's public key"
        if self.kind == "openpgp" and self.public_key is not None:
            yield "public_key is for minisign and cosign; openpgp has a keyring"
        if self.kind != "openpgp" and self.keyring is not None:
            yield "keyring is for openpgp; minisign and cosign have a public_key"
        for text in self.files:
            yield from self._faults_of_file(text)

    def _faults_of_file(self, text: str) -> Iterator[str]:
        if "://" in text:
            try:
                ImageUrl.parse(text)
            except InvalidRequestError as error:
                yield f"files: {error.message.replace('image_url', 'it')}"
        elif not _PATTERN.fullmatch(text):
            example = "'{dir}/SHA256SUMS.gpg' (it may use {parent} and {name})"
            yield f"files: '{text}' is not a pattern such as {example}"
        # A clear-signed file has the name of the checksum file itself.
        if self.kind != "openpgp" and not text.endswith(SUFFIXES[self.kind]):
            yield f"files: '{text}' must end with {' or '.join(SUFFIXES[self.kind])}, after the signed file's name"
