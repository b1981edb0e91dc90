"""Cloud-init data of a job, and the NoCloud image made of it. Pure.

The data may hold passwords and keys: it is never part of a spec, a log line or an error. A spec has a salted digest.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets

import msgspec

from provisioner.contracts import MIB
from provisioner.contracts.errors import InvalidRequestError
from provisioner.pipeline.iso9660 import iso9660

# Enough for user data with embedded scripts; larger files belong on a server.
MAX_DATA = MIB
# Every seed volume has this size, so that one replaces another whatever their contents are.
SEED_BYTES = 4 * MIB
# NoCloud accepts the label in capital letters, the only ones that plain ISO 9660 allows.
LABEL = "CIDATA"


def seed_name(volume_name: str) -> str:
    """Return the name of the seed volume for a volume."""
    return f"{volume_name}-seed"


class CloudInit(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The files of NoCloud. Without ``meta_data``, the job's id is the instance's and the volume's name the host's."""

    user_data: str
    meta_data: str | None = None
    network_config: str | None = None

    def __repr__(self) -> str:
        return "CloudInit(...)"

    def check(self) -> None:
        """Raise InvalidRequestError if there is no user data, or if the data is over ``MAX_DATA`` bytes."""
        if not self.user_data:
            raise InvalidRequestError("cloud_init.user_data must not be empty")
        size = sum(len(text.encode()) for text in (self.user_data, self.meta_data, self.network_config) if text)
        if size > MAX_DATA:
            raise InvalidRequestError(f"cloud_init must be at most {MAX_DATA // MIB} MiB in total")

    def image(self, job_id: str, volume_name: str, created_at: float) -> bytes:
        """Return the NoCloud image: ISO 9660 with the label ``CIDATA``."""
        files = {
            "meta-data": self.meta_data or default_meta_data(job_id, volume_name),
            "user-data": self.user_data,
            **({"network-config": self.network_config} if self.network_config else {}),
        }
        return iso9660(LABEL, {name: text.encode() for name, text in files.items()}, created_at)

    def seal(self) -> str:
        """Return a digest of the data with a random salt: it shows whether two requests are equal, and no more."""
        salt = secrets.token_hex(16)
        return f"{salt}:{self._digest(salt)}"

    def has_seal(self, seal: str) -> bool:
        """Return whether ``seal`` was made of the same data."""
        salt, _, digest = seal.partition(":")
        return hmac.compare_digest(digest, self._digest(salt))

    def _digest(self, salt: str) -> str:
        return hmac.new(salt.encode(), msgspec.json.encode(self), hashlib.sha256).hexdigest()


def default_meta_data(job_id: str, volume_name: str) -> str:
    """Return the meta data of a request that has none. A new id makes cloud-init run again on a new volume."""
    return f"instance-id: {job_id}\nlocal-hostname: {json.dumps(volume_name)}\n"
