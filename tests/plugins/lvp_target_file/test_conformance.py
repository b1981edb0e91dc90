"""The file target keeps the promises of every block target."""

from lvp_target_file import FileSettings, FileTarget
from provisioner.contracts import BackEndContext
from provisioner.contracts.testing import BlockTargetConformance


class TestFileTargetConforms(BlockTargetConformance):
    def make_target(self, folder):
        return FileTarget(FileSettings(str(folder)), BackEndContext("images", folder))


class TestPreallocatingFileTargetConforms(BlockTargetConformance):
    def make_target(self, folder):
        return FileTarget(FileSettings(str(folder), preallocate=True), BackEndContext("images", folder))
