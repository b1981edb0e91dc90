"""Reads from a source as the core does: with ``save`` into a file."""

from provisioner.contracts import ImageUrl


async def save(source, url, path, **span):
    """Save a span of the image to ``path``; return the bytes and the offset of the first."""
    with path.open("w+b") as file:
        async with source.open(ImageUrl.parse(url), **span) as stream:
            end = await stream.save(file.fileno(), lambda _end: None)
            return path.read_bytes()[stream.start : end], stream.start
