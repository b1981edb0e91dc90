"""API tokens: 256 random bits shown once; the file keeps their HMAC-SHA256 under a server key, nothing else.

A stolen token file grants no access: it holds no token, and guesses cannot be tested without the key, kept elsewhere.
Blocking: authentication takes two ``stat`` calls. ``settle`` writes and belongs in a thread.
"""

from __future__ import annotations

import fcntl
import hmac
import os
import re
import secrets
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from provisioner.auth.token_keys import KeyFile, key_id, write_private
from provisioner.config import Limits, Role
from provisioner.contracts.errors import ConfigError, ConflictError, NotFoundError, UnavailableError
from provisioner.contracts.small_file import read_small

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOKEN_PREFIX = "lvp_"  # noqa: S105 - a prefix that secret scanners recognize
_SECRET_BYTES = 32
# Seconds between two recorded uses of a token, to avoid a write for each request.
LAST_USE_GRAIN = 600.0
# Seconds to wait for another program's lock on the file: a command's work takes milliseconds. ``settle`` waits less, as
# it is called again.
LOCK_TIMEOUT = 5.0
SETTLE_LOCK_TIMEOUT = 1.0
_LOCK_PAUSE = 0.02


class TokenRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One token in the file. Times are in seconds since the epoch; ``expires_at`` None means never.

    ``key`` is the id of its digest's key; empty in files older than key ids.
    """

    name: str
    role: Role
    digest: str
    created_at: float
    key: str = ""
    expires_at: float | None = None
    last_used_at: float | None = None
    limits: Limits = Limits()


class _File(msgspec.Struct, kw_only=True):
    tokens: list[TokenRecord] = []


_DECODER = msgspec.json.Decoder(_File)


class TokenFile:
    """The tokens in ``path``. Without ``keys`` the key is beside it with the suffix ``.key``, created when needed."""

    def __init__(self, path: Path, keys: KeyFile | None = None) -> None:
        self._path = path
        self._keys_at = keys or KeyFile(path.with_suffix(".key"))
        self._seen: object = None
        self._records: list[TokenRecord] = []
        self._keys: list[bytes] = []
        # Not in the file yet: when a token was used, and its digest under the newest key if it had another one.
        self._used: dict[str, float] = {}
        self._moved: dict[str, tuple[str, str]] = {}
        self._noting = threading.Lock()  # over these two; never held during I/O

    def prepare(self) -> None:
        """Create the key if missing, at the daemon's start. Raises ConfigError if others can read it."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._keys_at.check_private()
        self._keys_at.newest()

    def create(self, name: str, role: Role, expires_at: float | None = None, limits: Limits | None = None) -> str:
        """Create a token and return it; it cannot be shown again. Raises ConflictError if the name is taken."""
        token = TOKEN_PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._locked(LOCK_TIMEOUT) as content:
            if any(record.name == name for record in content.tokens):
                raise ConflictError(f"a token named {name} exists already; revoke it first")
            key = self._keys_at.newest()
            content.tokens.append(
                TokenRecord(
                    name=name,
                    role=role,
                    digest=_digest(key, token),
                    key=key_id(key),
                    created_at=time.time(),
                    expires_at=expires_at,
                    limits=limits or Limits(),
                )
            )
        return token

    def list(self) -> list[TokenRecord]:
        """Return every token, without its secret. Raises ConfigError if the file is malformed."""
        return self._read().tokens

    def revoke(self, name: str) -> None:
        """Remove a token; it is refused from now on. Raises NotFoundError."""
        if not self._path.parent.exists():
            raise NotFoundError(f"there is no token named {name}: {self._path.parent} does not exist")
        with self._locked(LOCK_TIMEOUT) as content:
            kept = [record for record in content.tokens if record.name != name]
            if len(kept) == len(content.tokens):
                raise NotFoundError(f"there is no token named {name}")
            content.tokens[:] = kept

    def rotate_key(self, *, forget: bool = False) -> tuple[str, ...]:
        """Create a new key; return the names of all tokens, each of which moves to the new key at its next use.

        With ``forget``, remove the old keys and these tokens at once. Raises ConfigError.
        """
        if not self._path.parent.exists():
            raise ConfigError(f"there are no tokens: {self._path.parent} does not exist")
        with self._locked(LOCK_TIMEOUT) as content:
            keys = self._keys_at.read()
            if keys:  # a record from before key ids is under the oldest
                named = [msgspec.structs.replace(one, key=one.key or key_id(keys[-1])) for one in content.tokens]
                content.tokens[:] = named
            left = [record.name for record in content.tokens]
            self._keys_at.add()
            if forget:
                content.tokens.clear()
        return tuple(left)

    def authenticate(self, token: str, now: float) -> TokenRecord | None:
        """Return the record of a presented token; None if it is unknown or has expired.

        Takes the same time for every token: every digest is compared, in constant time.
        """
        self._refresh()
        found, digests = self._find(token)
        if found is None or _has_expired(found, now):
            return None
        with self._noting:
            self._used[found.name] = now
            if found.key != (newest := key_id(self._keys[0])):
                self._moved[found.name] = (newest, digests[newest])
        return found

    def expired(self, token: str, now: float) -> TokenRecord | None:
        """Return the record of a token that has expired; None if it is unknown or valid."""
        found, _ = self._find(token)
        return found if found is not None and _has_expired(found, now) else None

    def _find(self, token: str) -> tuple[TokenRecord | None, dict[str, str]]:
        """Return the token's record, and its digest under each key by the key's id."""
        digests = {key_id(key): _digest(key, token) for key in self._keys}
        oldest = _digest(self._keys[-1], token) if self._keys else ""
        found: TokenRecord | None = None
        for record in self._records:
            if hmac.compare_digest(record.digest, digests.get(record.key, oldest)):
                found = record
        return (found if self._keys else None), digests

    def settle(self) -> None:
        """Write pending uses and key moves to the file; after a failure they wait for the next call.

        Raises ConfigError, UnavailableError (the file is locked) or OSError.
        """
        with self._noting:
            used, moved = dict(self._used), dict(self._moved)
        self._audit(used, moved)
        with self._noting:  # keep what changed during the write
            self._used = {name: at for name, at in self._used.items() if used.get(name) != at}
            self._moved = {name: move for name, move in self._moved.items() if moved.get(name) != move}

    def _audit(self, used: dict[str, float], moved: dict[str, tuple[str, str]]) -> None:
        known = {record.name: record for record in self._records}
        late = {
            name: at
            for name, at in used.items()
            if name in known and at - (known[name].last_used_at or 0) >= LAST_USE_GRAIN
        }
        if not late and not moved:
            return
        with self._locked(SETTLE_LOCK_TIMEOUT) as content:
            newest = key_id(self._keys_at.newest())
            content.tokens[:] = [_settled(one, known.get(one.name), late, moved, newest) for one in content.tokens]

    def _refresh(self) -> None:
        """Read what ``lvp token`` changed, so that a revocation takes effect at once."""
        try:
            status = self._path.stat()
        except OSError:
            self._seen, self._records = None, []
            return
        seen = (status.st_ino, status.st_mtime_ns, self._keys_at.stamp())
        if seen != self._seen:
            self._records = self._read().tokens
            self._keys = self._keys_at.read()
            self._seen = seen

    def _read(self) -> _File:
        try:
            return _DECODER.decode(read_small(self._path))
        except FileNotFoundError:
            return _File()
        except (msgspec.MsgspecError, ValueError) as error:
            raise ConfigError(f"the token file {self._path} is malformed: {error}") from error

    @contextmanager
    def _locked(self, seconds: float) -> Iterator[_File]:
        """Yield the file's content and write it back atomically, under a lock.

        Raises UnavailableError if another program holds the lock for longer than ``seconds``.
        """
        lock = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _lock(lock, self._path, seconds)
            content = self._read()
            yield content
            write_private(self._path, msgspec.json.format(msgspec.json.encode(content), indent=2))
            needed = {record.key for record in content.tokens}
            if "" not in needed:  # only now: until the tokens are on disk they may need the old ones
                self._keys_at.keep(needed)
        finally:
            os.close(lock)


def is_name(text: str) -> bool:
    """Return whether ``text`` may name a token, in a log line as in a table."""
    return re.fullmatch(r"[A-Za-z0-9._-]{1,64}", text) is not None


def _has_expired(record: TokenRecord, now: float) -> bool:
    return record.expires_at is not None and record.expires_at <= now


def _lock(fd: int, path: Path, seconds: float) -> None:
    """Take the lock, trying for ``seconds``: a stopped program may hold it forever. Raises UnavailableError."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                raise UnavailableError(
                    f"the token file {path} is locked by another program (fuser {path.with_suffix('.lock')}); "
                    "end it and try again"
                ) from error
            time.sleep(_LOCK_PAUSE)
        else:
            return


def _settled(
    record: TokenRecord,
    seen: TokenRecord | None,
    used: dict[str, float],
    moved: dict[str, tuple[str, str]],
    newest: str,
) -> TokenRecord:
    """Return the record with its last use and new key; one that was replaced meanwhile stays unchanged."""
    if seen is None or record.digest != seen.digest:
        return record
    key, digest = moved.get(record.name, ("", ""))
    if key == newest:
        record = msgspec.structs.replace(record, digest=digest, key=newest)
    at = used.get(record.name)
    return record if at is None else msgspec.structs.replace(record, last_used_at=at)


def _digest(key: bytes, token: str) -> str:
    return hmac.digest(key, token.encode(errors="surrogatepass"), "sha256").hex()
