"""Images from HTTP and HTTPS servers. Registers the back end ``http``."""

from collections.abc import Sequence

from lvp_source_http.settings import HttpSettings
from lvp_source_http.source import HttpSource
from provisioner.contracts import BackEnd, ImageSource, hookimpl

__all__ = ["HttpSettings", "HttpSource", "lvp_image_sources"]


@hookimpl
def lvp_image_sources() -> Sequence[BackEnd[ImageSource]]:
    """Return the back end ``http``."""
    return [BackEnd("http", HttpSource, HttpSettings)]
