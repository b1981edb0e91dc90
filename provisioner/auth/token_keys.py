"""The server keys of the token digests, kept in a file beside the tokens, another file, or a systemd credential.

One key per line, in hex, the newest first. Older ones stay until no token needs them. Blocking, but small.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from provisioner.contracts.errors import ConfigError
from provisioner.contracts.small_file import read_small

if TYPE_CHECKING:
    from collections.abc import Collection

    from provisioner.config import Config
    from provisioner.contracts import SecretRef

_KEY_BYTES = 32
_LINE = re.compile(r"[0-9a-f]{64}")


def key_id(key: bytes) -> str:
    """Return an id of the key that reveals nothing about it."""
    return hashlib.sha256(b"token key id\0" + key).hexdigest()[:16]


class KeyFile:
    """The keys, newest first. ``writable`` is false if they are provided from outside."""

    def __init__(self, path: Path | None, reference: SecretRef | None = None) -> None:
        """``path`` is used without a ``reference``. A ``file:`` reference is treated as a path."""
        self._reference = reference
        if reference is not None:
            path = Path(reference.partition(":")[2]) if reference.startswith("file:") else None
        self._path = path

    @property
    def writable(self) -> bool:
        """Whether this program creates and removes keys."""
        return self._path is not None

    @property
    def where(self) -> str:
        """The location of the keys, for messages."""
        return str(self._path or self._reference)

    def stamp(self) -> tuple[int, int] | None:
        """Return a value that changes when the file does."""
        try:
            status = self._path.stat() if self._path is not None else None
        except OSError:
            return None
        return None if status is None else (status.st_ino, status.st_mtime_ns)

    def read(self) -> list[bytes]:
        """Return the keys; empty if there is no file yet. Raises ConfigError if they cannot be read."""
        try:
            text = read_small(self._path).decode() if self._path is not None else self._from_reference()
        except FileNotFoundError:
            if self.writable:
                return []
            raise ConfigError(f"the token key {self.where} is missing; tokens cannot be checked") from None
        except KeyError:  # no credentials, or no such variable
            raise ConfigError(
                f"the token key {self.where} is available only inside the service; name its file with --key-file"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the token key {self.where} cannot be read: {error}") from error
        lines = text.split()
        if not all(_LINE.fullmatch(line) for line in lines) or not (lines or self.writable):
            raise ConfigError(f"the token key {self.where} must be 64 hex digits a line (openssl rand -hex 32)")
        return [bytes.fromhex(line) for line in lines]

    def _from_reference(self) -> str:
        assert self._reference is not None, "one of the two is given"
        return self._reference.read(dict(os.environ))

    def newest(self) -> bytes:
        """Return the key for new tokens; create the first one. Raises ConfigError."""
        keys = self.read()
        return keys[0] if keys else self.add()

    def add(self) -> bytes:
        """Create a new key, which becomes the newest. Raises ConfigError if the keys are not writable."""
        self._check_writable()
        key = secrets.token_bytes(_KEY_BYTES)
        self._write([key, *self.read()])
        return key

    def keep(self, wanted: Collection[str]) -> None:
        """Remove the keys that no token needs: all but the newest and those with these ids."""
        if not self.writable:
            return
        keys = self.read()
        kept = [key for number, key in enumerate(keys) if number == 0 or key_id(key) in wanted]
        if len(kept) < len(keys):
            self._write(kept)

    def check_private(self) -> None:
        """Raise ConfigError if others can read the file: with it, guesses can be tested on a stolen token file."""
        if self._path is None or not self._path.exists():
            return
        mode = stat.S_IMODE(self._path.stat().st_mode)
        if mode & 0o077:
            raise ConfigError(f"others can read the token key {self._path} (mode {mode:04o}); chmod 600 it")

    def _check_writable(self) -> None:
        if not self.writable:
            raise ConfigError(f"the token key {self.where} is provided from outside; change it there")

    def _write(self, keys: list[bytes]) -> None:
        assert self._path is not None, "checked before"
        write_private(self._path, "".join(f"{key.hex()}\n" for key in keys).encode())


def token_keys(config: Config) -> KeyFile:
    """Return the key file that the configuration names."""
    return KeyFile(Path(config.token_file).with_suffix(".key"), config.auth.token_key)


def write_private(path: Path, content: bytes) -> None:
    """Write the file atomically; it is never readable by others."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(fd)
        temporary.replace(path)
    except OSError as error:  # such as a full disk, whose error names no file
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
