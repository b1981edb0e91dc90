"""Test servers on loopback: one that sends the bytes of a test, an image server, a cutting proxy, and nginx."""
