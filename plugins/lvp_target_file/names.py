"""Names of the files below ``.lvp/stage``: what each is, whose it is, and which job's. Pure.

``@OWNER.JOB.VOLUME`` is under construction, ``@OWNER.old-JOB.VOLUME`` is the replaced volume until the new one is
known to stand, ``@OWNER.gone-TOKEN.VOLUME`` is a volume being removed. Names without an owner are of a time before
there were owners.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_SHAPE = re.compile(r"(?:@(?P<owner>[0-9a-f]+)\.)?(?P<kind>old-|gone-)?(?P<job>[^.]*)\.?(?P<volume>.*)", re.DOTALL)
OLD, GONE = "old-", "gone-"


@dataclass(frozen=True, slots=True)
class StagedFile:
    """A file below ``.lvp/stage``. ``owner`` is empty if none is known; ``job`` is a token if it is being removed."""

    path: Path
    owner: str
    kind: str
    job: str
    volume: str

    @classmethod
    def read(cls, path: Path) -> StagedFile:
        """Read the name of ``path``. Every name is accepted."""
        match = _SHAPE.fullmatch(path.name)
        if match is None:
            return cls(path, "", "", path.name, "")
        return cls(path, match["owner"] or "", match["kind"] or "", match["job"], match["volume"])

    @property
    def what(self) -> str:
        """What it is, for a sentence."""
        if self.kind == GONE:
            return f"volume {self.volume}, which was being removed"
        return f"the {'replaced' if self.kind == OLD else 'staged'} volume {self.volume} of job {self.job}"


def staged_name(owner: str, job: str, volume: str, kind: str = "") -> str:
    """The name of a file below ``.lvp/stage``."""
    prefix = f"@{owner}." if owner else ""
    return f"{prefix}{kind}{job}.{volume}"
