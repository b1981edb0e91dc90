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
    """A domain and the local storage it uses: paths, and volumes of pools."""

    uuid: str
    name: str
    paths: frozenset[str]
    pool_volumes: frozenset[PoolVolume]


def read_domains(descriptions: str) -> list[Domain]:
    """Return the domains in ``descriptions``, a sequence of XML documents. Raises TargetUnavailableError."""
    return [_domain(element) for element in _parse(descriptions).iter("domain")]


def pool_folder(description: str) -> str | None:
    """Return the folder that holds a pool's volumes; None if it has none on this host."""
    return _parse(description).findtext("pool/target/path")


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
        paths.update(path for key in ("dev", "file") if (path := source.get(key, "")).startswith("/"))
        if "pool" in source.attrib and "volume" in source.attrib:
            volumes.add(PoolVolume(source.attrib["pool"], source.attrib["volume"]))
    return Domain(element.findtext("uuid", ""), element.findtext("name", ""), frozenset(paths), frozenset(volumes))
