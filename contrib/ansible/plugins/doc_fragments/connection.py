# SPDX-License-Identifier: MIT
"""The options that all modules share."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  url:
    description:
      - Address of the server as the managed host sees it, C(https://HOST:PORT) or C(unix:/PATH).
      - If not set, the environment variable E(LVP_URL) of the managed host is used.
    type: str
    default: http://127.0.0.1:8080
  token:
    description: API token. If not set, E(LVP_TOKEN) is used.
    type: str
  token_file:
    description: File on the managed host that contains the API token. If not set, E(LVP_TOKEN_FILE) is used.
    type: path
  ca:
    description: CA of the server's certificate (PEM). If not set, E(LVP_CA) is used, else the CAs of the system.
    type: path
  cert:
    description: Client certificate (PEM) for mutual TLS. If not set, E(LVP_CERT) is used.
    type: path
  key:
    description: Key of the client certificate. If not set, E(LVP_KEY) is used, else the key is in O(cert).
    type: path
"""
