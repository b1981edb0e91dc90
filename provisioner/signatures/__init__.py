"""Signatures that a configuration demands of images: where they are, and whether they count."""

from provisioner.signatures.keys import Key, read_key
from provisioner.signatures.proof import Proof
from provisioner.signatures.search import search

__all__ = ["Key", "Proof", "read_key", "search"]
