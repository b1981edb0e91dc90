"""Translates qemu-img's error messages. Pure."""

from __future__ import annotations

import re

from provisioner.contracts import last_words
from provisioner.contracts.errors import ConvertError, CorruptImageError, NoSpaceError, ProvisionerError, ToolError

_FULL = re.compile(r"No space left on device|Disk quota exceeded")
_MEMORY = re.compile(
    r"[Cc]annot allocate memory|[Ff]ailed to allocate|Could not allocate|failed to create thread"
    r"|failed to map segment|cannot map zero-fill pages"  # the dynamic loader
)
_IMAGE = re.compile(
    r"corrupt|truncated|Could not open|error while reading|[Ii]nvalid|[Uu]nsupported|not supported|too (?:big|large)"
)
# The internal name of the image, which means nothing to users.
_OURS = re.compile(r"'?json:\{.*?\}\}'?:?\s*|/proc/self/fd/\d+")


def as_error(error: ToolError) -> ProvisionerError:
    """Return the project's error for a failed qemu-img, or the tool's error if none matches."""
    said = plain(error.stderr)
    if error.status is None:
        return error
    if _FULL.search(said):
        return NoSpaceError("no space left while writing the image to the volume")
    if _MEMORY.search(said) or error.status == -6:  # glib aborts when out of memory
        return ConvertError("qemu-img reached its memory limit (memory_limit); the image needs too much memory")
    if "error while writing" in said:
        return ConvertError(f"writing to the volume failed: {said}")
    if _IMAGE.search(said):
        return CorruptImageError(f"the image cannot be read: {said}")
    return ConvertError(f"{error.message.partition(':')[0]}: {said}")


def plain(stderr: str) -> str:
    """Return the last lines of stderr without internal names."""
    return last_words(_OURS.sub("", stderr).replace("qemu-img: ", ""))
