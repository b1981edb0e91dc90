"""Runs make targets in a minimal Debian, to check on a fresh machine what the README promises.

`run` is the command, `trees` builds the cached trees, `carried` copies the machine's settings for package registries,
and `session` runs one command in namespaces.
"""
