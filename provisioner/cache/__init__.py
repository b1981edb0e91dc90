"""The host's image cache: each image is downloaded once and verified before it is used."""

from provisioner.cache.cache import ImageCache
from provisioner.cache.entry import Entry, Expectation
from provisioner.cache.image import CachedImage

__all__ = ["CachedImage", "Entry", "Expectation", "ImageCache"]
