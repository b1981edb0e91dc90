"""Webhooks: an observer that sends each change to a url, signed as Standard Webhooks says.

::

    [observers.ci]
    plugin = "webhook"
    url = "https://ci.example.com/hooks/volumes"
    secret = "file:/etc/libvirt-volume-provisioner/webhook.secret"     # whsec_...
    events = ["job.completed", "job.failed", "volume.*"]

Messages wait in an outbox on disk (``outbox``) until the receiver has accepted them (``webhook``). Each is delivered at
least once; a receiver tells repeats by the header ``webhook-id``.
"""

from collections.abc import Sequence

from lvp_observe_webhook.settings import WebhookSettings
from lvp_observe_webhook.webhook import WebhookObserver
from provisioner.contracts import BackEnd, Observer, hookimpl

__all__ = ["WebhookObserver", "WebhookSettings", "lvp_observers"]


@hookimpl
def lvp_observers() -> Sequence[BackEnd[Observer]]:
    """Return the observer ``webhook``."""
    return [BackEnd("webhook", WebhookObserver, WebhookSettings)]
