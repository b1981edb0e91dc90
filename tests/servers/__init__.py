"""Servers of the tests' own, on loopback: one that sends whatever bytes a test wants, and a real nginx."""
