"""Observability: logs, metrics and the audit log."""
