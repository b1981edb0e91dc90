"""The host's image cache: each image is downloaded once and verified before it is used."""

from provisioner.cache.cache import ImageCache
from provisioner.cache.entry import Entry, Expectation
from provisioner.cache.image import CachedImage
from provisioner.cache.upload_source import NAME as UPLOADS
from provisioner.cache.uploads import Upload

__all__ = ["UPLOADS", "CachedImage", "Entry", "Expectation", "ImageCache", "Upload"]
