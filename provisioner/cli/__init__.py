"""The command line: ``lvp``, also ``libvirt-volume-provisioner``.

Owns commands, their help and their exit status. Client commands know the REST API only; server-side commands call
into the modules they are about. Whatever is slow to import is imported inside the command that needs it, so that
``lvp --version`` and shell completion stay quick.
"""

from provisioner.cli.app import cli, main

__all__ = ["cli", "main"]
