"""Images from folders of this host, also of mounted network file systems. Registers the back end ``file``."""

from collections.abc import Sequence

from lvp_source_file.settings import FileSettings
from lvp_source_file.source import FileSource
from provisioner.contracts import BackEnd, ImageSource, hookimpl

__all__ = ["FileSettings", "FileSource", "lvp_image_sources"]


@hookimpl
def lvp_image_sources() -> Sequence[BackEnd[ImageSource]]:
    """Return the back end ``file``."""
    return [BackEnd("file", FileSource, FileSettings)]
