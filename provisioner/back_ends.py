"""The back ends of one configuration, found by url, image format or name. ``registry`` creates them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from provisioner.contracts.errors import InvalidRequestError, UrlNotAllowedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from provisioner.config import SignatureSettings
    from provisioner.contracts import BlockTarget, Converter, Guard, ImageSource, ImageUrl, Observer, SecretRef

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class BackEnds:
    """The back ends of one configuration, ready for use."""

    sources: Mapping[str, ImageSource] = field(default_factory=dict)
    converters: Mapping[str, Converter] = field(default_factory=dict)  # by image format
    targets: Mapping[str, BlockTarget] = field(default_factory=dict)
    guards: Mapping[str, Guard] = field(default_factory=dict)
    observers: Mapping[str, Observer] = field(default_factory=dict)
    default_target: str = ""
    # The installed converters by the formats they read, for what is not configured.
    readers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    # The secrets that the tables refer to, by key.
    secrets: Mapping[str, SecretRef] = field(default_factory=dict)
    # The signatures that sources demand, by the source's name.
    signatures: Mapping[str, SignatureSettings] = field(default_factory=dict)

    def source_for(self, image_url: ImageUrl) -> ImageSource:
        """Return the source configured for ``image_url``. Raises UrlNotAllowedError."""
        for source in self.sources.values():
            if source.owns(image_url):
                return source
        raise UrlNotAllowedError(f"{image_url} belongs to no configured source; nothing was fetched")

    def signature_for(self, source: ImageSource) -> SignatureSettings | None:
        """Return the signature that the source demands, or None. Raises LookupError if it is none of the sources."""
        names = [name for name, one in self.sources.items() if one is source]
        if not names:  # never a reason to demand less
            raise LookupError("the source is none of the configured ones")
        return self.signatures.get(names[0])

    def target(self, name: str | None) -> BlockTarget:
        """Return the target of that name, or the default one. Raises InvalidRequestError."""
        found = self.targets.get(name or self.default_target)
        if found is None:
            raise InvalidRequestError(f"no block target {name!r} is configured; there are: {names(self.targets)}")
        return found

    def converter(self, image_format: str) -> Converter:
        """Return the converter for that image format. Raises InvalidRequestError."""
        found = self.converters.get(image_format)
        if found is not None:
            return found
        if readers := self.readers.get(image_format):
            raise InvalidRequestError(
                f"image_type {image_format!r} is not configured; {' or '.join(readers)} can read it: "
                f'add {image_format} = "{readers[0]}" to [converters]'
            )
        raise InvalidRequestError(f"image_type {image_format!r} is not known; there are: {names(self.converters)}")

    async def aclose(self) -> None:
        """Close every back end, even if others fail."""
        groups = (self.observers, self.guards, self.converters, self.sources, self.targets)
        for back_end in dict.fromkeys(back_end for group in groups for back_end in group.values()):
            try:
                await back_end.aclose()
            except Exception as error:  # noqa: BLE001 - the boundary: one failure must not keep the others open
                log.warning("a back end could not be closed", back_end=type(back_end).__name__, reason=str(error))


def names(known: Mapping[str, object]) -> str:
    """Return the keys as a list for a message."""
    return ", ".join(sorted(known)) or "none"
