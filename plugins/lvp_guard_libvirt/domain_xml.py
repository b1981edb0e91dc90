"""Reads from domain XML which volumes domains use. Pure: XML in, names and paths out."""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree import ElementTree as ET

from provisioner.contracts.errors import TargetUnavailableError


@dataclass(frozen=True, slots=True)
class PoolVolume:
    """A volume named by its storage pool, as in ``<source pool="..." volume="..."/>``."""

    pool: str
    volume: str


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain and the storage it uses: local paths, names of RBD images as ``rbd:POOL/NAME``, and volumes of pools."""

    uuid: str
    name: str
    paths: frozenset[str]
    pool_volumes: frozenset[PoolVolume]


def read_domains(descriptions: str) -> list[Domain]:
    """Return the domains in ``descriptions``, a sequence of XML documents. Raises TargetUnavailableError."""
    return [_domain(element) for element in _parse(descriptions).iter("domain")]


def pool_folder(description: str) -> str | None:
    """Return what the paths of a pool's volumes begin with: a folder, or ``rbd:POOL``; None if it is neither."""
    root = _parse(description)
    if (pool := root.find("pool")) is not None and pool.get("type") == "rbd":
        name = pool.findtext("source/name", "")
        return f"rbd:{name}" if name else None
    return root.findtext("pool/target/path")


def _parse(documents: str) -> ET.Element:
    try:
        return ET.fromstring(f"<all>{documents}</all>")  # noqa: S314 - written by libvirtd, which is trusted
    except ET.ParseError as error:
        raise TargetUnavailableError(f"cannot parse the XML from libvirt: {error}") from error


def _domain(element: ET.Element) -> Domain:
    paths: set[str] = set()
    volumes: set[PoolVolume] = set()
    # All elements that name a source: disks with backing files and mirrors, file systems, passed-through storage.
    for source in element.iterfind("devices//source"):
        if source.get("protocol") == "rbd" and source.get("name"):
            paths.add(f"rbd:{source.attrib['name']}")
        paths.update(path for key in ("dev", "file") if (path := source.get(key, "")).startswith("/"))
        if "pool" in source.attrib and "volume" in source.attrib:
            volumes.add(PoolVolume(source.attrib["pool"], source.attrib["volume"]))
    return Domain(element.findtext("uuid", ""), element.findtext("name", ""), frozenset(paths), frozenset(volumes))
