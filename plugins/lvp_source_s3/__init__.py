"""Images from S3 and MinIO. Registers the back ends ``s3`` and ``minio``, which differ in their defaults only."""

from collections.abc import Sequence

from lvp_source_s3.settings import MinioSettings, S3Settings
from lvp_source_s3.source import S3Source
from provisioner.contracts import BackEnd, ImageSource, hookimpl

__all__ = ["MinioSettings", "S3Settings", "S3Source", "lvp_image_sources"]


@hookimpl
def lvp_image_sources() -> Sequence[BackEnd[ImageSource]]:
    """The back ends ``s3`` and ``minio``."""
    return [BackEnd("s3", S3Source, S3Settings), BackEnd("minio", S3Source, MinioSettings)]
