"""The native converter: raw and qcow2 images onto volumes without a child process, also while they arrive.

Reads these two formats only, and owns the fast path onto a device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lvp_convert_native.converter import NativeConverter, NativeSettings
from provisioner.contracts import BackEnd, Converter, hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["NativeConverter", "NativeSettings", "lvp_converters"]


@hookimpl
def lvp_converters() -> Sequence[BackEnd[Converter]]:
    """Register ``plugin = "native"``."""
    return [BackEnd("native", NativeConverter, NativeSettings)]
