"""Encodes and decodes the tags that this service puts on volumes. Pure.

A volume of ours has the bare tag ``lvp`` (``lvs @lvp`` lists them all) and these values, each as ``lvp.KEY=VALUE``:
``job``, ``created``, ``name`` (the final name), ``token`` (of its staging), ``owner`` (the installation), ``url`` and
``digest`` (of the image), ``signedby`` (kind and key of the image's signature, if one was demanded), on a base
``format``, on a cloud-init seed ``seed`` (the volume it belongs to), and ``use`` on a staged volume whose extents are
for a volume that grows. A volume that is being replaced, even if this service did not create it, has ``old`` or
``inplace`` (its name), ``by`` (the token), ``byjob`` and ``byowner``; if it is to be kept, also ``replacedat``,
``keptuntil`` and ``bytes``. A kept volume that is being restored has ``restoring`` (the token) and ``restorer`` (the
installation). LVM allows few characters in a tag, so every other byte is written as ``#`` and two hexadecimal digits.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING

from provisioner.contracts import Provenance

if TYPE_CHECKING:
    from collections.abc import Iterable

MARK = "lvp"
# The value of ``use`` on a staged volume whose extents are for a volume that grows.
GROWTH = "resize"
_PLAIN = re.compile(rb"[A-Za-z0-9_.+/=!:&-]")
# LVM allows 1024 characters in a tag; longer values are split into pieces well below that.
PIECE = 500


def encode(values: dict[str, str]) -> list[str]:
    """Return the tags for ``values``; a long value is split into ``KEY=...``, ``KEY.1=...`` and so on."""
    tags = []
    for key, value in values.items():
        coded = _quote(value)
        for number, start in enumerate(range(0, max(1, len(coded)), PIECE)):
            suffix = f".{number}" if number else ""
            tags.append(f"{MARK}.{key}{suffix}={coded[start : start + PIECE]}")
    return tags


def decode(tags: Iterable[str]) -> dict[str, str]:
    """Return the values in ``tags``; ignore foreign tags."""
    pieces: dict[str, dict[int, str]] = defaultdict(dict)
    for tag in tags:
        if match := re.fullmatch(rf"{MARK}\.([a-z]+)(?:\.(\d{{1,4}}))?=(.*)", tag):
            pieces[match[1]][int(match[2] or 0)] = match[3]
    return {key: _unquote("".join(text for _, text in sorted(parts.items()))) for key, parts in pieces.items()}


def is_own(tags: Iterable[str]) -> bool:
    """Return whether ``tags`` mark a volume that this service created."""
    return MARK in tags


def own(tags: Iterable[str]) -> list[str]:
    """Return those of ``tags`` that this service wrote."""
    return [tag for tag in tags if tag == MARK or tag.startswith(f"{MARK}.")]


def for_volume(name: str, token: str, provenance: Provenance, **more: str) -> list[str]:
    """Return all tags for a volume that this service creates."""
    values = {
        "job": provenance.job_id,
        "created": repr(provenance.created_at),
        "name": name,
        "token": token,
        "url": provenance.image_url,
        **({} if provenance.image_digest is None else {"digest": provenance.image_digest}),
        **({} if provenance.signed_by is None else {"signedby": provenance.signed_by}),
        **({} if provenance.seed_of is None else {"seed": provenance.seed_of}),
        **more,
    }
    return [MARK, *encode(values)]


def for_aside(key: str, name: str, token: str, job_id: str, owner: str) -> list[str]:
    """Return the tags for a volume that is being replaced; ``key`` is ``old`` or ``inplace``."""
    return encode({key: name, "by": token, "byjob": job_id, "byowner": owner})


def for_keeping(now: float, seconds: float, size: int) -> list[str]:
    """Return the further tags for a volume that is kept for so many seconds after it is replaced."""
    return encode({"replacedat": repr(now), "keptuntil": repr(now + seconds), "bytes": str(size)})


def for_restore(token: str, owner: str) -> list[str]:
    """Return the tags for a kept volume that is being restored."""
    return encode({"restoring": token, "restorer": owner})


def restore_tags(tags: Iterable[str]) -> list[str]:
    """Return those of ``tags`` that ``for_restore`` wrote."""
    return [tag for tag in tags if re.match(rf"{MARK}\.(restoring|restorer)=", tag)]


def aside_tags(tags: Iterable[str]) -> list[str]:
    """Return those of ``tags`` that ``for_aside``, ``for_keeping`` and ``for_restore`` wrote."""
    keys = "old|inplace|by|byjob|byowner|replacedat|keptuntil|bytes|restoring|restorer"
    return [tag for tag in tags if re.match(rf"{MARK}\.({keys})(\.\d+)?=", tag)]


def provenance_of(tags: Iterable[str]) -> Provenance | None:
    """Return the provenance of a volume, or None if this service did not create it."""
    tags = list(tags)
    if not is_own(tags):
        return None
    values = decode(tags)
    return Provenance(
        values.get("job", ""),
        values.get("url", ""),
        values.get("digest"),
        number(values.get("created", "")),
        values.get("signedby"),
        values.get("seed"),
    )


def _quote(text: str) -> str:
    raw = text.encode("utf-8", "surrogateescape")
    return "".join(chr(byte) if _PLAIN.match(bytes([byte])) else f"#{byte:02X}" for byte in raw)


def _unquote(text: str) -> str:
    raw = re.sub(rb"#([0-9A-Fa-f]{2})", lambda match: bytes([int(match[1], 16)]), text.encode())
    return raw.decode("utf-8", "surrogateescape")


def number(text: str) -> float:
    """Return the number in a value of ours, 0 if it is malformed."""
    try:
        return float(text)
    except ValueError:
        return 0.0
