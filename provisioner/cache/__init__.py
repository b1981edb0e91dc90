"""The image cache: verified images of this host, each downloaded once."""

from provisioner.cache.cache import ImageCache
from provisioner.cache.entry import Entry, Expectation
from provisioner.cache.handle import CachedImage

__all__ = ["CachedImage", "Entry", "Expectation", "ImageCache"]
