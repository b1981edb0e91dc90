"""Images from S3 and MinIO. Registers the back ends ``s3`` and ``minio``, which differ only in their defaults."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lvp_source_s3.settings import MinioSettings, S3Settings
from provisioner.contracts import BackEnd, BackEndContext, ImageSource, hookimpl

if TYPE_CHECKING:
    from lvp_source_s3.source import S3Source

__all__ = ["MinioSettings", "S3Settings", "S3Source", "lvp_image_sources"]


@hookimpl
def lvp_image_sources() -> Sequence[BackEnd[ImageSource]]:
    """Return the back ends ``s3`` and ``minio``."""
    return [BackEnd("s3", _source, S3Settings), BackEnd("minio", _source, MinioSettings)]


def _source(settings: S3Settings, context: BackEndContext) -> ImageSource:
    """Return an S3 source. Import the MinIO SDK only now: it costs 8 MiB and a fifth of the daemon's start time."""
    from lvp_source_s3.source import S3Source

    return S3Source(settings, context)


def __getattr__(name: str) -> object:
    if name == "S3Source":
        from lvp_source_s3.source import S3Source

        return S3Source
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
