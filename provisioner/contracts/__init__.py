"""The public interface for plugins.

A plugin is an installed Python package. Its entry point in the group ``libvirt_volume_provisioner`` names a module,
and hooks in that module register its back ends::

    # pyproject.toml
    [project.entry-points.libvirt_volume_provisioner]
    scp = "my_plugin"

    # my_plugin/__init__.py
    from provisioner.contracts import BackEnd, ImageSource, hookimpl

    class ScpSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        hosts: list[str]

    class ScpSource(ImageSource):
        def __init__(self, settings, context): ...
        ...                                       # owns, stat, open

    @hookimpl
    def lvp_image_sources():
        return [BackEnd("scp", ScpSource, ScpSettings)]

The configuration enables it with a table such as ``[sources.lab]``, which contains ``plugin = "scp"`` and the plugin's
own keys. The other hooks are ``lvp_converters``, ``lvp_block_targets``, ``lvp_guards`` and ``lvp_observers``. Run the
conformance suites of ``provisioner.contracts.testing`` in the plugin's tests; the built-in back ends pass them too.

The rules: be cancellable at every await; translate library exceptions into ``provisioner.contracts.errors``;
never block the event loop (use threads for files and ``run_tool`` for programs); clean up on every exit path.
"""

from provisioner.contracts import blockdev, errors
from provisioner.contracts.cancel_shield import ShieldExpiredError, shielded, undoing
from provisioner.contracts.converter import Converter, ImageView
from provisioner.contracts.guard import Guard, Observer
from provisioner.contracts.hookspecs import PROJECT, BackEnd, BackEndContext, NamesFiles, NoSettings, hookimpl
from provisioner.contracts.http import (
    Explain,
    HttpOptions,
    HttpSender,
    HttpTransport,
    Prepare,
    TransportSettings,
    read_secret,
)
from provisioner.contracts.keeping import RESTORE_KEEP, KeepingSettings, due, removable
from provisioner.contracts.ownership import PlaceLock
from provisioner.contracts.rate_limit import RateLimiter
from provisioner.contracts.sandbox import sandboxed
from provisioner.contracts.settings import AbsolutePath, ByteSize, Duration, SecretRef, checksum_file_faults, refuse
from provisioner.contracts.source import ImageSource, ImageStream, pwrite_all
from provisioner.contracts.target import BlockTarget, CloneTarget, KeepingTarget, StagedVolume, check_growth
from provisioner.contracts.threads import run_long
from provisioner.contracts.tool import ToolResult, last_words, run_tool
from provisioner.contracts.types import (
    GIB,
    MIB,
    Base,
    Capacity,
    ChangeEvent,
    Checksum,
    Device,
    Finding,
    JobEvent,
    KeptVolume,
    Owner,
    Placement,
    Provenance,
    ProvisionedBy,
    RemoteImage,
    Replaced,
    Signer,
    StageRequest,
    Volume,
    VolumeUser,
)
from provisioner.contracts.urls import ImageUrl, UrlPrefix
from provisioner.contracts.write_probe import write_probe

__all__ = [
    "GIB",
    "MIB",
    "PROJECT",
    "RESTORE_KEEP",
    "AbsolutePath",
    "BackEnd",
    "BackEndContext",
    "Base",
    "BlockTarget",
    "ByteSize",
    "Capacity",
    "ChangeEvent",
    "Checksum",
    "CloneTarget",
    "Converter",
    "Device",
    "Duration",
    "Explain",
    "Finding",
    "Guard",
    "HttpOptions",
    "HttpSender",
    "HttpTransport",
    "ImageSource",
    "ImageStream",
    "ImageUrl",
    "ImageView",
    "JobEvent",
    "KeepingSettings",
    "KeepingTarget",
    "KeptVolume",
    "NamesFiles",
    "NoSettings",
    "Observer",
    "Owner",
    "PlaceLock",
    "Placement",
    "Prepare",
    "Provenance",
    "ProvisionedBy",
    "RateLimiter",
    "RemoteImage",
    "Replaced",
    "SecretRef",
    "ShieldExpiredError",
    "Signer",
    "StageRequest",
    "StagedVolume",
    "ToolResult",
    "TransportSettings",
    "UrlPrefix",
    "Volume",
    "VolumeUser",
    "blockdev",
    "check_growth",
    "checksum_file_faults",
    "due",
    "errors",
    "hookimpl",
    "last_words",
    "pwrite_all",
    "read_secret",
    "refuse",
    "removable",
    "run_long",
    "run_tool",
    "sandboxed",
    "shielded",
    "undoing",
    "write_probe",
]
