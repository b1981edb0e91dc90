"""A small certificate authority for mutual TLS: made, used and listed by ``lvp pki``.

Owns the files of the authority and the certificates it issues. The server and its clients only read such files, from
this authority or any other. ``cryptography`` is imported on first use.
"""

from provisioner.pki.folder import Issued, PkiFolder

__all__ = ["Issued", "PkiFolder"]
