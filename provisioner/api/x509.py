"""The few facts about certificates and revocation lists that Python's ``ssl`` does not tell: ends, issuers, serials.

Reads files that an operator wrote and certificates that OpenSSL has verified. Verifies nothing itself.
Structures after RFC 5280, encoding after X.690 (DER).
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from datetime import UTC, datetime

_SEQUENCE, _INTEGER, _UTC_TIME, _GENERAL_TIME, _VERSION = 0x30, 0x02, 0x17, 0x18, 0xA0
_PEM = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----\s(.*?)-----END \1-----", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Certificate:
    """``issuer`` is the name as encoded, ``data`` all of it; ``not_after`` in seconds since the epoch."""

    serial: int
    issuer: bytes
    not_after: float
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class RevocationList:
    """``serials`` of what ``issuer`` takes back; ``next_update`` None: the list says nothing of its end."""

    issuer: bytes
    next_update: float | None
    serials: frozenset[int]


@dataclass(frozen=True, slots=True)
class _Item:
    """One encoded value: ``data`` with its header, ``body`` without."""

    tag: int
    data: bytes
    body: bytes

    def items(self) -> list[_Item]:
        return _items(self.body)


def certificates(pem: str) -> list[Certificate]:
    """Every certificate in the text. Raises ValueError where one is broken."""
    return [certificate(der) for der in _blocks(pem, "CERTIFICATE")]


def revocation_lists(pem: str) -> list[RevocationList]:
    """Every revocation list in the text. Raises ValueError where one is broken."""
    return [_revocation_list(der) for der in _blocks(pem, "X509 CRL")]


def certificate(der: bytes) -> Certificate:
    """One certificate. Raises ValueError."""
    fields = _signed_fields(der)
    if fields and fields[0].tag == _VERSION:
        fields = fields[1:]
    if [field.tag for field in fields[:4]] != [_INTEGER, _SEQUENCE, _SEQUENCE, _SEQUENCE]:
        raise ValueError("not a certificate")
    serial, _, issuer, validity = fields[:4]
    ends = validity.items()
    if len(ends) != 2:
        raise ValueError("not a certificate")
    return Certificate(int.from_bytes(serial.body, signed=True), issuer.data, _time(ends[1]), der)


def _revocation_list(der: bytes) -> RevocationList:
    fields = _signed_fields(der)
    if fields and fields[0].tag == _INTEGER:
        fields = fields[1:]
    if [field.tag for field in fields[:2]] != [_SEQUENCE, _SEQUENCE] or len(fields) < 3:
        raise ValueError("not a revocation list")
    issuer, rest = fields[1], fields[3:]
    _time(fields[2])  # when it was made
    ends = _time(rest.pop(0)) if rest and rest[0].tag in {_UTC_TIME, _GENERAL_TIME} else None
    entries = rest[0].items() if rest and rest[0].tag == _SEQUENCE else []
    return RevocationList(issuer.data, ends, frozenset(_serial(entry) for entry in entries))


def _serial(entry: _Item) -> int:
    fields = entry.items()
    if not fields or fields[0].tag != _INTEGER:
        raise ValueError("not a revocation list")
    return int.from_bytes(fields[0].body, signed=True)


def _signed_fields(der: bytes) -> list[_Item]:
    """The fields of what is signed: SEQUENCE { SEQUENCE { fields }, algorithm, signature }."""
    outer = _items(der)
    if len(outer) != 1 or outer[0].tag != _SEQUENCE:
        raise ValueError("not a signed structure")
    inner = outer[0].items()
    if len(inner) != 3 or inner[0].tag != _SEQUENCE:
        raise ValueError("not a signed structure")
    return inner[0].items()


def _items(data: bytes) -> list[_Item]:
    found, at = [], 0
    while at < len(data):
        header, length = _header(data, at)
        stop = at + header + length
        if stop > len(data):
            raise ValueError("cut short")
        found.append(_Item(data[at], data[at:stop], data[at + header : stop]))
        at = stop
    return found


def _header(data: bytes, at: int) -> tuple[int, int]:
    """Length of the header at ``at``, and of what follows it."""
    if at + 2 > len(data):
        raise ValueError("cut short")
    first = data[at + 1]
    if first < 0x80:
        return 2, first
    count = first & 0x7F
    if not 1 <= count <= 4 or at + 2 + count > len(data):
        raise ValueError("a length that cannot be")
    return 2 + count, int.from_bytes(data[at + 2 : at + 2 + count])


def _time(item: _Item) -> float:
    form = {_UTC_TIME: "%y%m%d%H%M%SZ", _GENERAL_TIME: "%Y%m%d%H%M%SZ"}.get(item.tag)
    if form is None:
        raise ValueError("not a time")
    when = datetime.strptime(item.body.decode("ascii"), form).replace(tzinfo=UTC)
    # Two digits up to 49 are of this century (RFC 5280, 4.1.2.5.1); Python's pivot is 68.
    if item.tag == _UTC_TIME and when.year >= 2050:
        when = when.replace(year=when.year - 100)
    return when.timestamp()


def _blocks(pem: str, kind: str) -> list[bytes]:
    try:
        bodies = [body for name, body in _PEM.findall(pem) if name == kind]
        return [base64.b64decode("".join(body.split()), validate=True) for body in bodies]
    except binascii.Error as error:
        raise ValueError(f"a {kind.lower()} in it is not base64") from error
