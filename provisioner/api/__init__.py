"""The REST API of the daemon."""
