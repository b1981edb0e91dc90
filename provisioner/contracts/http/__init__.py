"""HTTP for image sources: what a plugin that fetches over HTTP uses.

``HttpTransport`` fetches; ``TransportSettings`` is the base of such a source's settings; ``read_secret`` reads a
``SecretRef``. The other modules here are the transport's own.
"""

from provisioner.contracts.http.client import HttpOptions, read_secret
from provisioner.contracts.http.settings import TransportSettings
from provisioner.contracts.http.transport import Explain, HttpTransport, Prepare

__all__ = ["Explain", "HttpOptions", "HttpTransport", "Prepare", "TransportSettings", "read_secret"]
