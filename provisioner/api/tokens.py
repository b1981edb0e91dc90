"""API tokens: 256 random bits shown once; the file keeps their HMAC-SHA256 under a server key, nothing else.

A stolen token file lets nobody in: it holds no token, and without the key (another file) none can be tried either.
Blocking, but small: a look at the file's time for each call.
"""

from __future__ import annotations

import fcntl
import hmac
import os
import secrets
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from provisioner.config import Role
from provisioner.contracts.errors import ConfigError, ConflictError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOKEN_PREFIX = "lvp_"  # noqa: S105 - a mark by which secret scanners know a token
_SECRET_BYTES = 32


class TokenRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One token as the file keeps it. Times in seconds since the epoch; ``expires_at`` None: never."""

    name: str
    role: Role
    digest: str
    created_at: float
    expires_at: float | None = None
    last_used_at: float | None = None


class _File(msgspec.Struct, kw_only=True):
    tokens: list[TokenRecord] = []


class TokenFile:
    """The tokens in ``path`` and the server key in ``path`` with the suffix ``.key``, made when first needed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._key_path = path.with_suffix(".key")
        self._seen: tuple[int, int] | None = None
        self._records: list[TokenRecord] = []
        self._key = b""

    def create(self, name: str, role: Role, expires_at: float | None = None) -> str:
        """Make a token and return it; it is not to be had again. Raises ConflictError where the name is taken."""
        token = TOKEN_PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
        with self._locked() as content:
            if any(record.name == name for record in content.tokens):
                raise ConflictError(f"a token named {name} exists already; revoke it first")
            content.tokens.append(
                TokenRecord(
                    name=name,
                    role=role,
                    digest=_digest(self._make_key(), token),
                    created_at=time.time(),
                    expires_at=expires_at,
                )
            )
        return token

    def list(self) -> list[TokenRecord]:
        """Every token, without its secret, which is not kept. Raises ConfigError where the file is broken."""
        return self._read().tokens

    def revoke(self, name: str) -> None:
        """Forget a token; it is refused from now on. Raises NotFoundError."""
        with self._locked() as content:
            kept = [record for record in content.tokens if record.name != name]
            if len(kept) == len(content.tokens):
                raise NotFoundError(f"there is no token named {name}")
            content.tokens[:] = kept

    def authenticate(self, token: str, now: float) -> TokenRecord | None:
        """The record of a presented token; None where it is unknown or has expired.

        Takes the same time whatever the token: every digest is compared, in constant time.
        """
        self._refresh()
        digest = _digest(self._key, token)
        found: TokenRecord | None = None
        for record in self._records:
            if hmac.compare_digest(record.digest, digest):
                found = record
        if found is None or (found.expires_at is not None and found.expires_at <= now):
            return None
        return found

    def _refresh(self) -> None:
        """Take in what ``lvp token`` changed: revocation counts at once."""
        try:
            status = self._path.stat()
        except OSError:
            self._seen, self._records = None, []
            return
        seen = (status.st_ino, status.st_mtime_ns)
        if seen != self._seen:
            self._records = self._read().tokens
            self._key = bytes.fromhex(self._key_path.read_text()) if self._key_path.exists() else b""
            self._seen = seen

    def _read(self) -> _File:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=_File)
        except FileNotFoundError:
            return _File()
        except msgspec.MsgspecError as error:
            raise ConfigError(f"the token file {self._path} is broken: {error}") from error

    @contextmanager
    def _locked(self) -> Iterator[_File]:
        """The file's content, written back atomically; two commands at once take turns."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            content = self._read()
            yield content
            _write_private(self._path, msgspec.json.format(msgspec.json.encode(content), indent=2))
        finally:
            os.close(lock)

    def _make_key(self) -> bytes:
        if not self._key_path.exists():
            _write_private(self._key_path, secrets.token_hex(_SECRET_BYTES).encode())
        return bytes.fromhex(self._key_path.read_text())


def _digest(key: bytes, token: str) -> str:
    return hmac.digest(key, token.encode(), "sha256").hex()


def _write_private(path: Path, content: bytes) -> None:
    """Whole or not at all, and never readable by others, not even for a moment."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(fd)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
