"""The native converter keeps what every converter promises."""

import subprocess
from pathlib import Path

from lvp_convert_native import NativeConverter, NativeSettings
from provisioner.contracts import BackEndContext
from provisioner.contracts.testing import ConverterConformance


class TestNative(ConverterConformance):
    def make_converter(self):
        return NativeConverter(NativeSettings(), BackEndContext("native", Path("/")))

    def make_images(self, folder):
        raw = folder / "image.raw"
        raw.write_bytes(self.content)
        images = [(raw, "raw")]
        for name, flags in {"plain": [], "zlib": ["-c"], "zstd": ["-c", "-o", "compression_type=zstd"]}.items():
            path = folder / f"{name}.qcow2"
            subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", *flags, raw, path], check=True)
            images.append((path, "qcow2"))
        return images
