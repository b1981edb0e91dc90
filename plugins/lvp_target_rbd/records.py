"""What this service writes into an image's metadata, and what was found about an image. Pure.

An image of ours has the key ``lvp``, a JSON object: ``job``, ``created``, ``name`` (the final name), ``token`` (of its
staging), ``owner`` (the installation that made it), ``url``, ``digest``, ``signedby``, ``seed``, and on a base
``format``. An image that was set aside, our own or not, has ``lvp.aside``: ``name`` (the one it had), ``token``,
``job`` and ``owner`` of what set it aside, ``at``, ``until`` when it is kept (0: it is to be removed), and ``new``, the
id of the image that gets its name. Clones inherit the metadata of their parents, so the key ``lvp`` counts only if its
``name`` is the image's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lvp_target_rbd import names
from provisioner.contracts import KeptVolume, Provenance, Volume

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# The snapshot of a base, of which its clones are made.
SNAPSHOT = "image"


@dataclass(frozen=True, slots=True)
class Aside:
    """Why and for how long an image was set aside."""

    name: str
    token: str
    job: str
    owner: str
    at: float
    until: float
    new: str = ""

    def text(self) -> str:
        """Return it as it is stored."""
        return json.dumps({key: getattr(self, key) for key in self.__slots__}, sort_keys=True)

    @classmethod
    def parse(cls, text: str) -> Aside | None:
        """Return what is stored; None if nothing is, or nothing that can be read."""
        values = _object(text)
        if not values:
            return None
        words = {key: str(values.get(key, "")) for key in ("name", "token", "job", "owner", "new")}
        return cls(**words, at=_number(values.get("at")), until=_number(values.get("until")))


@dataclass(frozen=True, slots=True)
class Image:
    """An image as it was found. ``broken``: it was created or removed half-way."""

    name: str
    id: str
    size: int = 0
    tags: Mapping[str, Any] = field(default_factory=dict)
    aside: Aside | None = None
    watchers: tuple[str, ...] = ()
    snapshots: tuple[str, ...] = ()
    clones: int = 0
    used: int = 0
    broken: bool = False

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Image:
        """Return the image that ``image_calls.py`` describes."""
        return cls(
            found["name"],
            found["id"],
            found.get("size", 0),
            _object(found.get("tags", "")),
            Aside.parse(found.get("aside", "")),
            tuple(found.get("watchers", ())),
            tuple(found.get("snapshots", ())),
            found.get("clones", 0),
            found.get("used", 0),
            found.get("broken", False),
        )

    @property
    def working(self) -> names.Working | None:
        """Return the parts of the name of an image that is being worked on."""
        return names.Working.parse(self.name)

    @property
    def is_volume(self) -> bool:
        return names.is_volume_name(self.name) and not self.broken

    @property
    def provenance(self) -> Provenance | None:
        """Return where the image came from; None if this service did not make it."""
        name = self.name if self.aside is None or self.is_volume else self.aside.name
        if self.tags.get("name") != name:
            return None
        text = {key: str(self.tags.get(key, "")) for key in ("job", "url")}
        optional = {key: str(self.tags[key]) if key in self.tags else None for key in ("digest", "signedby", "seed")}
        return Provenance(
            text["job"], text["url"], optional["digest"], _number(self.tags.get("created")), optional["signedby"],
            optional["seed"],
        )  # fmt: skip

    def volume(self, target: str, place: str) -> Volume:
        """Return the image as a volume of that target."""
        return Volume(self.name, target, f"rbd:{place}/{self.name}", self.size, self.provenance)

    def kept(self, target: str) -> KeptVolume | None:
        """Return the image as a kept volume; None if it is none."""
        aside = self.aside
        if aside is None or not self.name.startswith(names.KEPT):
            return None
        return KeptVolume(self.name, aside.name, target, self.size, aside.job, aside.at, aside.until, self.provenance)


def tags_of(name: str, token: str, owner: str, provenance: Provenance, image_format: str | None = None) -> str:
    """Return the tags of an image of ours, as they are stored."""
    values = {
        "job": provenance.job_id,
        "created": provenance.created_at,
        "name": name,
        "token": token,
        "owner": owner,
        "url": provenance.image_url,
        "digest": provenance.image_digest,
        "signedby": provenance.signed_by,
        "seed": provenance.seed_of,
        "format": image_format,
    }
    return json.dumps({key: value for key, value in values.items() if value is not None}, sort_keys=True)


def images_of(found: Sequence[Mapping[str, Any] | None]) -> dict[str, Image]:
    """Return the described images by name."""
    return {one["name"]: Image.of(one) for one in found if one is not None}


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
