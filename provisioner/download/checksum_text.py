"""Parses the text of a checksum file, in every form that publishers and common tools write. Reads no file.

It understands a bare digest, lines of ``sha256sum`` (``HEX  name``, ``HEX *name``), BSD lines
(``SHA256 (name) = HEX``), ``openssl dgst`` (``SHA2-256(name)= HEX``), a digest after its algorithm
(``sha256:HEX  name``) or after the name (``name: HEX``), names with paths, sections such as ``# SHA512 HASH``, and any
of these in a PGP clear-signed text, whose signature is not verified here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from provisioner.contracts import Checksum
from provisioner.contracts.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterator

_ALGORITHMS = {32: "md5", 40: "sha1", 64: "sha256", 128: "sha512"}
_STRONG = ("sha256", "sha512")  # in the order of preference: the cache is keyed by SHA-256
_LABELS = {
    "md5": "md5",
    "sha1": "sha1",
    "sha256": "sha256",
    "sha2256": "sha256",
    "sha512": "sha512",
    "sha2512": "sha512",
}
# A digest stands alone between spaces, or after a label; a file's name may contain hexadecimal digits too.
_DIGEST = re.compile(r"(?<![^\s:=\\])(?:[0-9A-Fa-f]{128}|[0-9A-Fa-f]{64}|[0-9A-Fa-f]{40}|[0-9A-Fa-f]{32})(?!\S)")
_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9/_-]{1,15}")
_BSD = re.compile(rf"(?:({_LABEL.pattern}) ?)?\((.+)\) ?= ?")  # BSD, openssl dgst
_BETWEEN = " \t:="  # between a name, a label and a digest
_SECTION = re.compile(r"#+\s*([A-Za-z0-9/_-]+)\s+HASH(?:ES)?", re.IGNORECASE)
_NO_NAME = {"", "-", "stdin"}  # sha256sum and openssl name standard input so
# Suffixes that say how a file is packed: an image and its packed form have different digests.
_PACKED = (".gz", ".xz", ".zst", ".bz2", ".lz4", ".lzma", ".zip", ".7z", ".tar", ".tgz", ".ova")


@dataclass(slots=True)
class ChecksumText:
    """The digests of one file in a checksum text, which is fed line by line. Uses little memory, whatever its length.

    ``url_path`` is the image's path on the server: of names with paths, the one that ends it is preferred.
    ``algorithm`` is that of digests without a label, None if their length decides. ``only_file``: the text is a sidecar
    of this image, so a digest without a name counts, and so does the only digest of a file with another name.
    """

    file_name: str
    algorithm: str | None
    only_file: bool
    url_path: str = ""
    _found: dict[tuple[int, str], set[str]] = field(default_factory=dict)  # (rank, algorithm) -> digests
    _others: dict[str, str] = field(default_factory=dict)  # the first digests of other files -> their names
    _section: str | None = None
    _in_signature: bool = False

    def feed(self, raw: str) -> None:
        """Take one line."""
        line = raw.strip().removeprefix("- ")  # a clear-signed text escapes lines that begin with a dash
        if line.startswith("-----"):
            self._in_signature = line.startswith("-----BEGIN PGP SIGNATURE")
        elif section := _SECTION.fullmatch(line):
            self._section = section[1]
        elif not self._in_signature and (entry := self._entry(line)) is not None:
            self._note(*entry)

    def _entry(self, line: str) -> tuple[str, str, str | None] | None:
        """Return the algorithm, the digest and the name of a line; None if it is none of a known algorithm."""
        parts = _parts(line)
        if parts is None:
            return None
        digest, label, name = parts
        algorithm, label = _ALGORITHMS[len(digest)], label or self._section
        if label is not None:
            # Other algorithms, such as BLAKE2 and SHA-3, have digests of the same lengths.
            if _plain(label) != algorithm:
                return None
        elif algorithm in _STRONG and self.algorithm not in {None, algorithm}:
            return None
        return algorithm, digest, None if name in _NO_NAME else name.removeprefix("./")

    def _note(self, algorithm: str, digest: str, name: str | None) -> None:
        rank = self._rank(name)
        if rank is not None:
            digests = self._found.setdefault((rank, algorithm), set())
            if len(digests) < 2:  # two are a contradiction
                digests.add(digest)
        elif algorithm in _STRONG and name is not None and len(self._others) < 2:
            self._others.setdefault(digest, name)

    def _rank(self, name: str | None) -> int | None:
        """Return how well a line's name fits the image, the lower the better; None if it is of another file."""
        if name == self.file_name:
            return 0
        if name is None:
            return 3 if self.only_file else None
        path = name.replace("\\", "/")
        if path.rsplit("/", 1)[-1] != self.file_name:
            return None
        return 1 if self.url_path.endswith("/" + path.lstrip("/")) else 2

    def result(self) -> Checksum | None:
        """Return the image's checksum, None if it is not listed.

        Raises ImageError if the text contradicts itself, or if a sidecar has no digest of the image.
        """
        found = self.listed()
        return self._of_other_name() if found is None and self.only_file else found

    def listed(self) -> Checksum | None:
        """Return the image's checksum, None if no line is about it. Raises ImageError if there are two."""
        for algorithm in _STRONG:
            for rank in range(4):
                digests = self._found.get((rank, algorithm))
                if digests is not None and len(digests) > 1:
                    raise ImageError(f"it has more than one {algorithm} digest for {self.file_name}")
                if digests is not None:
                    return Checksum(algorithm, next(iter(digests)))
        return None

    def _of_other_name(self) -> Checksum:
        """Return the only digest of a sidecar, which names the file behind a link such as ``latest``.

        The digest itself decides in the end; a differently packed file can only be a mistake.
        """
        if not self._others:
            raise ImageError(f"it contains no {self.algorithm or 'sha256 or sha512'} digest")
        digest, name = next(iter(self._others.items()))
        if len(self._others) > 1 or _packed(name) != _packed(self.file_name):
            raise ImageError(f"it names {name}, not {self.file_name}")
        return Checksum(_ALGORITHMS[len(digest)], digest)

    @property
    def weak(self) -> list[str]:
        """Return the algorithms of the image's digests that are too weak, such as ``md5``."""
        return sorted({algorithm for _, algorithm in self._found if algorithm not in _STRONG})


def parse(text: str, algorithm: str | None, file_name: str, *, only_file: bool) -> Checksum | None:
    """Return the checksum of ``file_name`` from a whole text, as ``ChecksumText`` does."""
    parsed = ChecksumText(file_name, algorithm, only_file)
    for line in text.lstrip("\ufeff").splitlines():
        parsed.feed(line)
    return parsed.result()


def _parts(line: str) -> tuple[str, str | None, str] | None:
    """Return the digest, the label (or None) and the name (may be empty) of a line; None if it has no digest."""
    found = list(_DIGEST.finditer(line))
    if not found:
        return None
    digest = found[0] if found[0].start() <= 1 else found[-1]  # a name may look like a digest
    before, after = line[: digest.start()], line[digest.end() :].strip().removeprefix("*")
    label: str | None = None
    if bsd := _BSD.fullmatch(before):
        label, after = bsd[1], bsd[2]
    elif before not in {"", "\\"}:
        # No regular expression here: a hostile line of blanks would keep it busy.
        before = before.rstrip(_BETWEEN)
        if _LABEL.fullmatch(before) and (after or _plain(before)):
            label = before  # sha256:HEX name, Get-FileHash
        elif after:
            return None  # a sentence
        else:
            last = re.split(r"[\s:=]", before)[-1]
            label = last if _plain(last) else None  # name sha256:HEX
            after = (before.removesuffix(last) if label else before).rstrip(_BETWEEN)
    return digest[0].lower(), label, after


def _plain(label: str) -> str | None:
    """Return the algorithm that a label means, None if it is not one of ours."""
    return _LABELS.get(re.sub(r"sum$|[-_]", "", label.lower()))


def _packed(name: str) -> list[str]:
    return list(_packings(name.lower()))


def _packings(name: str) -> Iterator[str]:
    while (suffix := next((suffix for suffix in _PACKED if name.endswith(suffix)), None)) is not None:
        yield suffix
        name = name.removesuffix(suffix)
