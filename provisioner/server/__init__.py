"""Connections: addresses, TLS handshakes, limits, and hypercorn behind them. Knows no route."""
