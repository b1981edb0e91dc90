"""The image cache: verified images of this host, each downloaded once."""

from provisioner.cache.cache import ImageCache
from provisioner.cache.entry import Entry, Expectation
from provisioner.cache.image import CachedImage

__all__ = ["CachedImage", "Entry", "Expectation", "ImageCache"]
