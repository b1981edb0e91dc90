"""Names of the files below ``.lvp/stage``: their kind, owner, job and volume. Pure.

``@OWNER.JOB.VOLUME`` is a staged volume, ``@OWNER.old-JOB.VOLUME`` a replaced volume that is kept until the swap is
complete, ``@OWNER.gone-TOKEN.VOLUME`` a volume being removed, ``@OWNER.base-JOB.NAME`` a staged base. Earlier versions
wrote names without an owner.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_SHAPE = re.compile(
    r"(?:@(?P<owner>[0-9a-f]+)\.)?(?P<kind>old-|gone-|base-)?(?P<job>[^.]*)\.?(?P<volume>.*)", re.DOTALL
)
OLD, GONE, BASE = "old-", "gone-", "base-"
# Folders of bases: those of clones, and those that overlays need. Others must never take one for the other.
BASES, BACKING = ".lvp/base", ".lvp/backing"


@dataclass(frozen=True, slots=True)
class StagedFile:
    """A file below ``.lvp/stage``. ``owner`` is empty if unknown; ``job`` is a token for a volume being removed."""

    path: Path
    owner: str
    kind: str
    job: str
    volume: str

    @classmethod
    def read(cls, path: Path) -> StagedFile:
        """Return the file that the name of ``path`` describes. Every name is accepted."""
        match = _SHAPE.fullmatch(path.name)
        if match is None:
            return cls(path, "", "", path.name, "")
        return cls(path, match["owner"] or "", match["kind"] or "", match["job"], match["volume"])

    @property
    def what(self) -> str:
        """A description for messages."""
        if self.kind == GONE:
            return f"volume {self.volume}, which was being removed"
        if self.kind == BASE:
            return f"the staged base {self.volume} of job {self.job}"
        return f"the {'replaced' if self.kind == OLD else 'staged'} volume {self.volume} of job {self.job}"


def staged_name(owner: str, job: str, volume: str, kind: str = "") -> str:
    """Return the name of a file below ``.lvp/stage``."""
    prefix = f"@{owner}." if owner else ""
    return f"{prefix}{kind}{job}.{volume}"
