"""The file target with qcow2 volumes on top of bases: a clone is a new file of a few tables, on any file system."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lvp_target_file import qcow2
from lvp_target_file.backing import BackingFiles
from lvp_target_file.clones import FileCloneTarget
from lvp_target_file.disk import translated
from lvp_target_file.placement import needed_bytes
from lvp_target_file.target import FileTarget
from provisioner.contracts import Finding, Placement
from provisioner.contracts.errors import NoSpaceError, TargetUnavailableError

if TYPE_CHECKING:
    from lvp_target_file.folder import Entry
    from lvp_target_file.settings import FileSettings
    from provisioner.contracts import BackEndContext, Base, StageRequest


class FileOverlayTarget(FileCloneTarget):
    """Volumes as qcow2 files, on top of read-only raw files in the same folder."""

    # The methods below block and run in threads.

    def _why_no_clones(self) -> str | None:
        self._folder.check_there()
        return None

    def _make_base(self, request: StageRequest) -> None:
        self._bases.check_name_free(request.name)
        super()._make_base(request)

    def _clone(self, base: Base, request: StageRequest) -> Entry | None:
        placement, old = self._place(request, base.digest)
        if placement is Placement.IN_PLACE:
            raise NoSpaceError(f"there is no room for a clone beside the volume {request.name}")
        self._folder.claim()
        self._room.make(needed_bytes(request, self._settings), base.digest)
        path = str(self._bases.path / base.name)
        with self._folder.looking(), self._bases.opened(base), translated("create", self._folder.stage_of(request)):  # noqa: SIM117
            with self._folder.created(request) as fd:
                qcow2.make_overlay(fd, request.size_bytes, path, "raw")
        return old

    def _findings(self) -> list[Finding]:
        count = self._bases.count()
        found = [
            Finding(
                True,
                f"volumes in {self._folder.path} are qcow2 overlays of bases; "
                f"{count} bases of at most {self._settings.max_bases}",
            )
        ]
        assert isinstance(self._bases, BackingFiles)
        try:
            orphans = self._bases.orphans()
        except TargetUnavailableError as error:
            return [*found, Finding(None, f"the bases of qcow2 files were not checked: {error.message}")]
        if orphans:
            files = ", ".join(repr(str(path)) for path, _ in orphans[:5])
            bases = ", ".join(sorted({repr(text) for _, text in orphans})[:5])
            found.append(
                Finding(
                    False,
                    f"{len(orphans)} qcow2 files refer to bases that are missing or were changed: {files} ({bases})",
                    "restore the bases from a backup, or provision the volumes again",
                )
            )
        return found


def make_file_target(settings: FileSettings, context: BackEndContext) -> FileTarget:
    """Return a target that clones, or one that only copies if ``clone`` is off or volumes are preallocated."""
    if not settings.clone or settings.preallocate:
        return FileTarget(settings, context)
    return (FileOverlayTarget if settings.format == "qcow2" else FileCloneTarget)(settings, context)
