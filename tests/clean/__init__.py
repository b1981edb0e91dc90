"""Runs make targets in a minimal Debian of its own: what the README promises, on a fresh machine.

`run` is the command, `trees` builds what is cached, `carried` brings in the machine's settings for package registries,
`session` runs one command in namespaces.
"""
