"""Checks OpenPGP signatures with gpgv, in the sandbox, with no keys but those of the given keyring.

gpgv reports on a descriptor of its own, in lines that no name or comment in a key or a signature can imitate. A
clear-signed text counts only as gpgv prints it: what is around the signed part is not signed.
"""

from __future__ import annotations

import io
import os
import re
import shutil
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from provisioner.contracts import MIB, Signer, last_words, run_tool, sandboxed
from provisioner.contracts.errors import SignatureError, ToolError
from provisioner.contracts.tool import ENVIRONMENT
from provisioner.signatures.keys import ALTERED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from provisioner.signatures.keys import Key

# Seconds for a text, and for an image, which is read in full: at 50 MB/s these are 350 GB.
TIMEOUT, IMAGE_TIMEOUT = 60.0, 7200.0
# gpgv needs some 20 MiB; compressed packets ask for more.
_MEMORY = 256 * MIB
# Only comments may come before it. A regular expression over a megabyte would hold the event loop.
_HEAD = 16 * 1024
_CLEAR_SIGNED = re.compile(rb"^-----BEGIN PGP SIGNED MESSAGE-----[ \t]*\r?$", re.MULTILINE)
# MD5, SHA-1, RIPEMD-160: two texts with the same digest can be made, or will be.
_WEAK = {"1": "MD5", "2": "SHA-1", "3": "RIPEMD-160"}
# All signatures are good; one is bad; one cannot be checked.
_ENDS = (0, 1, 2)
_NO_KEY = "9"  # in ERRSIG
_VERDICTS = ("GOODSIG", "BADSIG", "EXPSIG", "EXPKEYSIG", "REVKEYSIG", "ERRSIG")


@dataclass(slots=True)
class Verdict:
    """What gpgv says about one signature: ``status`` is the keyword, ``key`` the id of the key that made it."""

    status: str = ""
    key: str = ""
    name: str = ""
    reason: str = ""
    fingerprint: str = ""  # of the primary key, if the signature itself is right
    digest: str = ""


@dataclass(slots=True)
class Report:
    """What gpgv says about a file of signatures. ``plaintext``: it contains a signed text itself."""

    verdicts: list[Verdict] = field(default_factory=list)
    plaintext: bool = False


def gpgv() -> str:
    """Return the path of gpgv. Raises SignatureError."""
    path = shutil.which("gpgv", path=ENVIRONMENT["PATH"])
    if path is None:
        raise SignatureError(
            "OpenPGP signatures need the program gpgv, which is not installed: install the package gpgv"
        )
    return path


async def missing_layers() -> list[str]:
    """Return the layers of the sandbox that this host lacks, each as ``name: reason``. Raises ProvisionerError."""
    argv = sandboxed(await trio.to_thread.run_sync(gpgv), mode="probe", memory=_MEMORY)
    return (await run_tool(argv, name="the sandbox of gpgv", timeout=TIMEOUT)).stdout.splitlines()


def is_clear_signed(content: bytes) -> bool:
    """Return whether the text is clear-signed, or claims to be."""
    return _CLEAR_SIGNED.search(content[:_HEAD]) is not None


def _is_one_block(content: bytes) -> bool:
    """Return whether there is one signed text with one block of signatures. Blocking."""
    begins = Counter(line.rstrip() for line in io.BytesIO(content) if line.startswith(b"-----BEGIN PGP "))
    return begins == {b"-----BEGIN PGP SIGNED MESSAGE-----": 1, b"-----BEGIN PGP SIGNATURE-----": 1}


async def check_clear_signed(content: bytes, key: Key, where: str) -> tuple[bytes, Signer]:
    """Return the signed part of a clear-signed text, and who signed it. ``where`` names it. Raises SignatureError."""
    if not await trio.to_thread.run_sync(_is_one_block, content):
        raise SignatureError(f"{where} is malformed: it must have one signed text with one signature block")
    report, said, text = await _run(key, [content])
    return text, judge(report, key, where, said)


async def check_detached(signature: bytes, content: bytes | int, key: Key, where: str) -> Signer:
    """Return who signed the content, the text itself or an open file. Raises SignatureError."""
    report, said, _ = await _run(key, [signature, content])
    if report.plaintext:  # gpgv would have checked this text instead of the file
        raise SignatureError(f"{where} is not a detached signature: it contains a text of its own")
    return judge(report, key, where, said)


def judge(report: Report, key: Key, where: str, said: str = "") -> Signer:
    """Return who signed. One good signature is enough if none is wrong. Raises SignatureError."""
    found = {verdict.status: verdict for verdict in reversed(report.verdicts)}
    if bad := found.get("BADSIG"):
        raise SignatureError(f"{where} does not match what it signs (key {bad.key}): {ALTERED}")
    for verdict in report.verdicts:
        if verdict.status == "GOODSIG" and verdict.fingerprint and verdict.digest not in _WEAK:
            return Signer("openpgp", verdict.fingerprint, verdict.name)
    for status in ("GOODSIG", "REVKEYSIG", "EXPKEYSIG", "EXPSIG", "ERRSIG"):
        if status in found and (status != "GOODSIG" or found[status].fingerprint):
            raise SignatureError(f"{where} {_refusal(found[status], key, said)}")
    raise SignatureError(f"{where} is malformed: gpgv finds no OpenPGP signature in it ({last_words(said, 200)})")


def _refusal(verdict: Verdict, key: Key, said: str) -> str:
    of = f"the key {verdict.key} ({verdict.name})" if verdict.name else f"the key {verdict.key}"
    if verdict.status == "GOODSIG":
        weak = _WEAK.get(verdict.digest, "an unknown digest")
        return f"uses {weak}, which is too weak; ask the publisher for a better one"
    if verdict.status == "REVKEYSIG":
        return f"was made with {of}, which is revoked; put the publisher's new key into {key.path}"
    if verdict.status == "EXPKEYSIG":
        return f"was made with {of}, which has expired; put the publisher's renewed key into {key.path}"
    if verdict.status == "EXPSIG":
        return f"has expired ({of}); the publisher must sign anew"
    if verdict.reason == _NO_KEY:
        return f"was made with {of}, which is not in {key.path}; if you trust this key, add it there"
    words = last_words(said.replace("gpgv: ", ""), 200)
    return f"cannot be checked: it is malformed, of an unsupported algorithm, or the clock is wrong ({words})"


async def _run(key: Key, files: list[bytes | int]) -> tuple[Report, str, bytes]:
    """Run gpgv on a signature, and on what it signs if that is a file of its own.

    Return the report, the messages for people, and the text that a clear-signed file contains.
    """
    text = bytearray()
    with ExitStack() as stack:
        fds = [one if isinstance(one, int) else _memfd(stack, one) for one in files]
        images = [one for one in files if isinstance(one, int)]
        ring, status = _memfd(stack, key.ring), _memfd(stack, b"")
        argv = [
            *sandboxed(await trio.to_thread.run_sync(gpgv), images, memory=_MEMORY),
            "--homedir", "/nonexistent", "--keyring", _path(ring), "--status-fd", str(status), "--output", "-",
            "--", *map(_path, fds),
        ]  # fmt: skip
        timeout = IMAGE_TIMEOUT if images else TIMEOUT
        try:
            done = await run_tool(
                argv, name="gpgv", timeout=timeout, check=False, pass_fds=[*fds, ring, status], on_output=text.extend
            )
        except ToolError as error:
            raise SignatureError(f"the signature was not checked: {error.message}") from error
        if done.status not in _ENDS:
            raise SignatureError(f"the signature was not checked: gpgv ended with status {done.status}")
        report = os.pread(status, MIB, 0).decode(errors="replace")
    return parse_status(report), done.stderr, bytes(text)


def parse_status(report: str) -> Report:
    """Parse what gpgv writes to its status descriptor (doc/DETAILS of GnuPG)."""
    found = Report()
    for keyword, fields in _status_lines(report):
        if keyword == "PLAINTEXT":
            found.plaintext = True
        elif keyword == "NEWSIG":
            found.verdicts.append(Verdict())
        elif keyword in _VERDICTS and fields:
            if not found.verdicts or found.verdicts[-1].status:
                found.verdicts.append(Verdict())
            verdict = found.verdicts[-1]
            verdict.status, verdict.key = keyword, fields[0]
            if keyword == "ERRSIG":
                verdict.reason = fields[5] if len(fields) > 5 else ""
            else:
                verdict.name = _shown(" ".join(fields[1:]))
        elif keyword == "VALIDSIG" and found.verdicts and len(fields) >= 8:
            found.verdicts[-1].fingerprint = fields[9] if len(fields) > 9 else fields[0]
            found.verdicts[-1].digest = fields[7]
    return found


def _status_lines(report: str) -> Iterator[tuple[str, list[str]]]:
    for line in report.split("\n"):
        mark, _, rest = line.partition(" ")
        if mark == "[GNUPG:]" and rest:
            keyword, *fields = rest.split(" ")
            yield keyword, fields


def _shown(name: str) -> str:
    """Return a user id without its escapes and without characters that do not print."""
    text = re.sub(r"%([0-9A-Fa-f]{2})", lambda match: chr(int(match[1], 16)), name)
    return "".join(character if character.isprintable() else "?" for character in text)[:200]


def _memfd(stack: ExitStack, content: bytes) -> int:
    """Return a file in memory, which exists as long as a descriptor of it."""
    fd = os.memfd_create("signature", os.MFD_CLOEXEC)
    stack.callback(os.close, fd)
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]
    return fd


def _path(fd: int) -> str:
    return f"/proc/self/fd/{fd}"
