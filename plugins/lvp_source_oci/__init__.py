"""Images from OCI registries: ORAS artifacts and KubeVirt's containerDisks. Registers the back end ``oci``."""

from collections.abc import Sequence

from lvp_source_oci.settings import OciSettings
from lvp_source_oci.source import OciSource
from provisioner.contracts import BackEnd, ImageSource, hookimpl

__all__ = ["OciSettings", "OciSource", "lvp_image_sources"]


@hookimpl
def lvp_image_sources() -> Sequence[BackEnd[ImageSource]]:
    """Return the back end ``oci``."""
    return [BackEnd("oci", OciSource, OciSettings)]
