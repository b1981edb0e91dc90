"""Named images: what a name such as ``debian-12`` stands for today."""

from provisioner.images.resolver import ImageResolver, ResolvedImage

__all__ = ["ImageResolver", "ResolvedImage"]
