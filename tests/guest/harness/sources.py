"""Selects the apt sources for the guest: those of this machine that are Debian's own.

A machine's apt configuration often names third parties too. Their keys and packages do not belong in the guest. A
source counts as Debian's if it offers the component `main` of the release, its updates or its security fixes.
"""

import re
import subprocess
from pathlib import Path

APT = Path("/etc/apt")
# Settings of this machine's apt that are needed to reach and trust its mirror.
CARRIED_OPTIONS = ("Acquire::http::", "Acquire::https::", "Acquire::Check-", "Acquire::Retries")


def release(os_release: str) -> str:
    """Return the release's code name from the text of os-release."""
    found = re.search(r"^VERSION_CODENAME=\"?([a-z]+)\"?$", os_release, re.MULTILINE)
    if not found:
        raise RuntimeError("os-release has no VERSION_CODENAME; guests can only be built on Debian")
    return found[1]


def debian_sources(texts: dict[str, str], codename: str) -> str:
    """Return Debian's own entries in apt's files (name -> text) as one deb822 text."""
    suites = {codename, f"{codename}-updates", f"{codename}-security"}
    stanzas = [
        stanza
        for name, text in sorted(texts.items())
        for stanza in (_deb822_stanzas(text) if name.endswith(".sources") else _one_line_stanzas(text))
        if _offers(stanza, suites)
    ]
    if not stanzas:
        raise RuntimeError(f"the machine's apt configuration has no Debian source for {codename}")
    return "\n\n".join("\n".join(f"{key}: {value}" for key, value in stanza.items()) for stanza in stanzas) + "\n"


def as_release(texts: dict[str, str], own: str, wanted: str) -> dict[str, str]:
    """Return apt's files (name -> text) of release ``own`` with the suites of ``wanted`` and the same mirrors."""
    return {name: re.sub(rf"(?<![\w/.-]){own}(?=[-\s]|$)", wanted, text) for name, text in texts.items()}


def machine_release() -> str:
    """Return this machine's release, such as bookworm."""
    return release(Path("/etc/os-release").read_text())


def machine_sources(wanted: str = "") -> tuple[str, str]:
    """Return the release ``wanted`` (default: this machine's) and its Debian sources on this machine's mirrors."""
    own = machine_release()
    codename = wanted or own
    files = [
        APT / "sources.list",
        *(APT / "sources.list.d").glob("*.list"),
        *(APT / "sources.list.d").glob("*.sources"),
    ]
    texts = {file.name: file.read_text() for file in files if file.is_file()}
    return codename, debian_sources(as_release(texts, own, codename), codename)


def machine_options() -> list[str]:
    """Return the settings of this machine's apt that the guest's build needs too."""
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    return [line for line in dump.splitlines() if line.startswith(CARRIED_OPTIONS)]


def _offers(stanza: dict[str, str], suites: set[str]) -> bool:
    return (
        "deb" in stanza.get("Types", "").split()
        and stanza.get("Enabled", "yes") != "no"
        and bool(suites & set(stanza.get("Suites", "").split()))
        and "main" in stanza.get("Components", "").split()
    )


def _deb822_stanzas(text: str) -> list[dict[str, str]]:
    """Parse a .sources file; drop comments and keep continuation lines as they are."""
    stanzas = []
    for block in re.split(r"\n\s*\n", text):
        lines = [line for line in block.splitlines() if line.strip() and not line.startswith("#")]
        fields = re.findall(r"^([A-Za-z-]+):[ \t]*(.*(?:\n[ \t].*)*)$", "\n".join(lines), re.MULTILINE)
        stanzas.append(dict(fields))
    return [stanza for stanza in stanzas if stanza]


def _one_line_stanzas(text: str) -> list[dict[str, str]]:
    """Parse the lines of a .list file: `deb [option=value ...] uri suite component...`."""
    stanzas = []
    for kind, options, uri, suite, components in re.findall(
        r"^(deb)\s+(?:\[([^]]*)\]\s+)?(\S+)\s+(\S+)\s+([^#\n]+)", text, re.MULTILINE
    ):
        stanza = {"Types": kind, "URIs": uri, "Suites": suite, "Components": components.strip()}
        signed = re.search(r"signed-by=(\S+)", options)
        stanzas.append(stanza | ({"Signed-By": signed[1]} if signed else {}))
    return stanzas
