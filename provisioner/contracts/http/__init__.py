"""HTTP for plugins: the interface for those that fetch images over HTTP, or send small requests.

``HttpTransport`` fetches, ``HttpSender`` sends, ``TransportSettings`` is the base class of a source's settings,
``read_secret`` reads a ``SecretRef``. The other modules are internal to the transport.
"""

from provisioner.contracts.http.options import HttpOptions, read_secret
from provisioner.contracts.http.sender import HttpSender
from provisioner.contracts.http.settings import TransportSettings
from provisioner.contracts.http.transport import Explain, HttpTransport, Prepare

__all__ = ["Explain", "HttpOptions", "HttpSender", "HttpTransport", "Prepare", "TransportSettings", "read_secret"]
