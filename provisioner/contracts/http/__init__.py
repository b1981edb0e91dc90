"""HTTP for image sources: the interface for plugins that fetch over HTTP.

``HttpTransport`` fetches, ``TransportSettings`` is the base class of such a source's settings, ``read_secret`` reads a
``SecretRef``. The other modules are internal to the transport.
"""

from provisioner.contracts.http.client import HttpOptions, read_secret
from provisioner.contracts.http.settings import TransportSettings
from provisioner.contracts.http.transport import Explain, HttpTransport, Prepare

__all__ = ["Explain", "HttpOptions", "HttpTransport", "Prepare", "TransportSettings", "read_secret"]
