"""Bases of qcow2 volumes: read-only raw files in ``.lvp/backing``, which their overlays need as long as they exist.

An overlay is any file below the folder whose header names the base, even if another program made it:
a volume, a staged, kept or renamed one, or one that has lost its attributes. A base that has an overlay or is open is
never removed or replaced, even if it is damaged. If a file cannot be looked at, all bases count as used.

What removes or replaces bases works under the folder's lock, which a job that makes an overlay also takes: it either
finds its base gone, or its overlay is found.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from lvp_target_file import qcow2
from lvp_target_file.bases import BaseFiles
from lvp_target_file.disk import sync, translated
from lvp_target_file.holders import held
from lvp_target_file.names import BACKING
from provisioner.contracts.errors import BaseExistsError, BaseGoneError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lvp_target_file.bases import BaseFile
    from provisioner.contracts import Base, Provenance

# QEMU runs as another user, which must reach the bases, but need not list them. libvirt gives it the file.
_FOLDER_MODE = 0o711


class BackingFiles(BaseFiles):
    """The bases of one folder with qcow2 volumes."""

    subfolder = BACKING

    def publish(self, staged: Path, name: str, provenance: Provenance) -> Base:
        """Give a complete staged file the name of a base.

        Raises BaseExistsError if there is one, BaseGoneError if a damaged one is in the way.
        """
        with self._folder.changing():
            digest = provenance.image_digest or ""
            if self.find(digest, name.rpartition(".")[2]) is not None:
                raise BaseExistsError(f"the base {name} was made by another job")
            self.check_name_free(name)
            with translated("create", self.path):
                self.path.mkdir(parents=True, exist_ok=True)
                for folder in (self.path.parent, self.path):
                    folder.chmod(_FOLDER_MODE)
            return super().publish(staged, name, provenance)

    def check_name_free(self, name: str) -> None:
        """Raise BaseGoneError if a damaged base of that name has overlays, so that it must stay as it is."""
        path = self.path / name
        with self._folder.looking(), translated("inspect", path):
            stays = path.exists() and not self._is_whole(name) and not self._may_go(name)
        if stays:
            raise BaseGoneError(f"the base {name} was changed by another program, and volumes refer to it")

    def least_used_first(self, sparing: str | None = None) -> list[BaseFile]:
        """Return the bases that may be evicted: those without overlays, except those of the digest ``sparing``."""
        found = super().least_used_first(sparing)
        if not found:
            return []
        with self._folder.looking():
            used = self.used()
        return [file for file in found if file.path.name not in used]

    def evict(self, file: BaseFile) -> bool:
        """Remove a base; return False if it has overlays, is open or is gone already."""
        with self._folder.changing(), translated("remove", file.path):
            if not self._may_go(file.path.name):
                return False
            try:
                # Not truncated: a process that opens it in this moment keeps it.
                file.path.unlink()
            except FileNotFoundError:
                return False
            sync(self.path)
        return True

    def used(self) -> set[str]:
        """Return the names of the bases that have overlays; of all if that cannot be found out."""
        names = {path.name for path in self._paths()}
        try:
            texts = [text for _, text in self.references()] if names else []
        except OSError:
            return names
        return {name for name in names if any(name in text for text in texts)}

    def references(self) -> list[tuple[Path, str]]:
        """Return the files below the folder that have a backing file, with its path as it stands there."""
        headers = ((path, qcow2.header_of(path)) for path in self._below())
        return [(path, header.backing) for path, header in headers if header is not None and header.backing]

    def orphans(self) -> list[tuple[Path, str]]:
        """Return the files whose base is missing or was changed."""
        with self._folder.looking(), translated("list", self._folder.path):
            ours = [(path, text) for path, text in self.references() if Path(text).parent == self.path]
        return [(path, text) for path, text in ours if not self._is_whole(Path(text).name)]

    def _is_whole(self, name: str) -> bool:
        return any(file.path.name == name for file in self._files())

    def _may_go(self, name: str) -> bool:
        if name in self.used():
            return False
        try:
            with held(self.path / name) as hold:
                return not hold.users
        except FileNotFoundError:
            return True

    def _below(self) -> Iterator[Path]:
        """Yield every file below the folder, except the bases. Raises OSError."""
        for folder, _, names in os.walk(self._folder.path, onerror=_raised):
            if Path(folder) != self.path:
                yield from (Path(folder, name) for name in names)


def _raised(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
