"""Publishers' keys and signatures: made with gpg, by minisign's format, and in cosign's documented forms."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


class Gpg:
    """A home of gpg with keys. Times are like ``20200101T000000``."""

    def __init__(self, home):
        self.home = home
        self.fingerprints = {}

    def run(self, *arguments, data=b"", time=None):
        faked = ["--faked-system-time", f"{time}!"] if time else []
        command = [
            "gpg",
            "--homedir",
            self.home,
            "--batch",
            "--quiet",
            "--pinentry-mode",
            "loopback",
            "--passphrase",
            "",
        ]
        done = subprocess.run([*command, *faked, *arguments], input=data, capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def new_key(self, name, *, expires="never", time="20200101T000000"):
        """Make a key; return its fingerprint."""
        user = f"{name} <{name}@example.com>"
        self.run("--quick-gen-key", user, "ed25519", "sign", expires, time=time)
        listing = self.run("--with-colons", "--list-keys", f"={user}").decode()
        self.fingerprints[name] = next(line.split(":")[9] for line in listing.splitlines() if line.startswith("fpr"))
        return self.fingerprints[name]

    def keyring(self, *names, armored=False):
        return self.run(*(["--armor"] if armored else []), "--export", *(self.fingerprints[name] for name in names))

    def revoke(self, name):
        certificate = Path(self.home, "openpgp-revocs.d", f"{self.fingerprints[name]}.rev").read_text()
        self.run("--import", data=certificate.replace("\n:-----BEGIN", "\n-----BEGIN").encode())

    def sign(self, name, data, *options, time=None):
        """Return a detached signature."""
        return self.run("--local-user", self.fingerprints[name], *options, "--detach-sign", data=data, time=time)

    def clear_sign(self, name, data, *, time=None):
        return self.run("--local-user", self.fingerprints[name], "--clear-sign", data=data, time=time)


@contextmanager
def gpg_home():
    """Provide a Gpg. Its folder has a short name, for the socket of its agent."""
    home = tempfile.mkdtemp(prefix="gpg", dir="/tmp")
    try:
        yield Gpg(home)
    finally:
        subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=True, timeout=60)
        shutil.rmtree(home)


class Minisign:
    """A minisign key, and signatures in the form of https://jedisct1.github.io/minisign/."""

    def __init__(self, key_id=bytes(range(8))):
        self.secret = Ed25519PrivateKey.generate()
        self.raw_id = key_id
        self.id = key_id[::-1].hex().upper()

    @property
    def public_key(self):
        raw = b"Ed" + self.raw_id + self.secret.public_key().public_bytes_raw()
        return f"untrusted comment: minisign public key {self.id}\n{base64.b64encode(raw).decode()}\n".encode()

    def sign(self, data, *, comment="timestamp:1700000000\tfile:SHA256SUMS\thashed", legacy=False):
        signature = self.secret.sign(data if legacy else hashlib.blake2b(data).digest())
        raw = (b"Ed" if legacy else b"ED") + self.raw_id + signature
        both = self.secret.sign(signature + comment.encode())
        lines = [
            "untrusted comment: signature", base64.b64encode(raw).decode(), f"trusted comment: {comment}",
            base64.b64encode(both).decode(),
        ]  # fmt: skip
        return ("\n".join(lines) + "\n").encode()


class Cosign:
    """A key of ``cosign generate-key-pair``, and the bundles of ``cosign sign-blob --key --bundle``."""

    def __init__(self, *, ed25519=False):
        self.secret = Ed25519PrivateKey.generate() if ed25519 else ec.generate_private_key(ec.SECP256R1())

    @property
    def public_key(self):
        return self.secret.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    @property
    def fingerprint(self):
        return hashlib.sha256(
            self.secret.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        ).hexdigest()

    def signature(self, data):
        if isinstance(self.secret, Ed25519PrivateKey):
            return base64.b64encode(self.secret.sign(data)).decode()
        return base64.b64encode(self.secret.sign(data, ec.ECDSA(SHA256()))).decode()

    def old_bundle(self, data, **changes):
        """The form of cosign 1 and 2, with ``--tlog-upload=false``."""
        return json.dumps({"base64Signature": self.signature(data), "cert": "", "rekorBundle": None} | changes).encode()

    def new_bundle(self, data, **changes):
        """The form of cosign 3, and of cosign 2 with ``--new-bundle-format``."""
        digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
        hint = base64.b64encode(bytes.fromhex(self.fingerprint)).decode()
        bundle = {
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
            "messageSignature": {
                "messageDigest": {"algorithm": "SHA2_256", "digest": digest},
                "signature": self.signature(data),
            },
        }
        return json.dumps(bundle | changes).encode()
