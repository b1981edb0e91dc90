"""The configuration: TOML in, frozen and validated settings out."""

from provisioner.config.access import AuditSettings, AuthSettings, CertificateGrant, Limits, Role
from provisioner.config.images import NamedImage
from provisioner.config.load import (
    LOOPBACK_PREFIXES,
    check_limits,
    decode,
    dump,
    embedded,
    load,
    parse,
    plugin_tables,
    read,
)
from provisioner.config.schema import (
    DEFAULT_CONVERTERS,
    CacheSettings,
    Config,
    JobSettings,
    LogSettings,
    PrewarmSettings,
    ServerSettings,
)
from provisioner.config.secrecy import show
from provisioner.config.secrets import check_secret, secret_references, unreadable
from provisioner.config.signatures import SUFFIXES, SignatureSettings, beside
from provisioner.config.strict import Faults, decode_struct, decode_values

__all__ = [
    "DEFAULT_CONVERTERS",
    "LOOPBACK_PREFIXES",
    "SUFFIXES",
    "AuditSettings",
    "AuthSettings",
    "CacheSettings",
    "CertificateGrant",
    "Config",
    "Faults",
    "JobSettings",
    "Limits",
    "LogSettings",
    "NamedImage",
    "PrewarmSettings",
    "Role",
    "ServerSettings",
    "SignatureSettings",
    "beside",
    "check_limits",
    "check_secret",
    "decode",
    "decode_struct",
    "decode_values",
    "dump",
    "embedded",
    "load",
    "parse",
    "plugin_tables",
    "read",
    "secret_references",
    "show",
    "unreadable",
]
