"""Confines programs that read untrusted data. ``sandboxed`` returns the command line.

This file is also the script in that command line: it drops its privileges, then becomes the program. It imports only
the standard library. The program gets no sockets, no files except the given descriptors and the system's programs
and libraries, no capability except the one to open these files, no new privileges, and limited memory. Each layer needs
kernel support; ``probe`` prints the layers that this host lacks.

- **files, processes**: Landlock (Linux 5.13; it has to be in the kernel's ``lsm=`` list)
- **network**: a seccomp filter without ``socket`` and ``io_uring_setup`` (which can create sockets too). A network
  namespace would do the same, but a service with ``RestrictNamespaces`` cannot create one.
- **privileges**: ``no_new_privs``, and capabilities dropped before the program starts, so that it cannot regain them
- **memory**: a limit on the address space. Stacks and malloc arenas are kept small, because they would use it up with
  pages that are never touched.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import struct
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

# Read by the dynamic loader, and by the libraries of the programs when they start.
READABLE = (
    "/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/gnutls", "/etc/crypto-policies", "/dev/urandom",
)  # fmt: skip
STACK = 2 * 1024 * 1024
ARENAS = "2"

_CAP_DAC_OVERRIDE = 1  # a volume may belong to another user
_CAP_VERSION = 0x20080522
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 22, 38
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
# All file system rights of Landlock, by the version that introduced them.
_HANDLED = {1: (1 << 13) - 1, 2: 1 << 13, 3: _TRUNCATE, 5: _IOCTL_DEV}
_TCP = 0b11  # since 4: bind, connect
_SCOPED = 0b11  # since 6: abstract unix sockets, signals to others
# machine -> (audit architecture, socket, io_uring_setup)
_CALLS = {"x86_64": (0xC000003E, 41, 425), "aarch64": (0xC00000B7, 198, 425), "riscv64": (0xC00000F3, 198, 425)}
_X32 = 0x40000000
_KILL, _REFUSE, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000

libc = ctypes.CDLL(None, use_errno=True)


class _Missing(Exception):  # noqa: N818 - not an error: the host lacks it
    """The host lacks a layer."""


def sandboxed(
    program: str,
    readable: Sequence[int] = (),
    writable: Sequence[int] = (),
    *,
    mode: str = "best-effort",
    memory: int = 0,
) -> list[str]:
    """Return the beginning of a command line that confines ``program`` to these open descriptors.

    ``program`` is an absolute path; ``memory`` limits its address space in bytes (0: no limit). If the host lacks a
    layer, ``mode`` ``best-effort`` continues without it, ``required`` fails, and ``probe`` prints a line
    ``name: reason`` for each one and does not run the program. A memfd is always accessible and must not be listed.
    """
    # -I -S: only the standard library is needed, and without site packages Python starts in half the time.
    numbers = (",".join(map(str, fds)) for fds in (readable, writable))
    return [sys.executable, "-I", "-S", __file__, mode, str(int(memory)), *numbers, program]


def main() -> None:
    """``sandbox.py best-effort|required|probe MEMORY READABLE WRITABLE PROGRAM [ARGUMENT...]``.

    READABLE and WRITABLE are comma-separated open descriptors. If the host lacks a layer, ``best-effort`` continues
    without it, ``required`` exits with an error, and ``probe`` prints it and exits.
    """
    mode, memory, readable, writable, *command = sys.argv[1:]
    missing = dict(_sandboxed(int(memory), _numbers(readable), _numbers(writable), command[0]))
    if mode == "probe":
        sys.stdout.writelines(f"{layer}: {why}\n" for layer, why in missing.items())
        return
    if missing and mode == "required":
        sys.exit("; ".join(f"this host cannot confine its {layer} ({why})" for layer, why in missing.items()))
    try:
        os.execve(command[0], command, os.environ | {"MALLOC_ARENA_MAX": ARENAS})  # noqa: S606 - no shell is wanted
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def _sandboxed(
    memory: int, readable: Sequence[int], writable: Sequence[int], program: str
) -> Iterator[tuple[str, str]]:
    """Apply all layers; yield those that could not be applied, with the reason."""
    layers: dict[str, Callable[[], None]] = {
        "privileges": _drop_privileges,
        "files": lambda: _restrict_files(readable, writable, program),
        "network": _refuse_sockets,
        "memory": lambda: _limit_memory(memory),  # last: it also limits this interpreter
    }
    for layer, apply in layers.items():
        try:
            apply()
        except (OSError, ValueError, _Missing) as error:
            yield layer, error.strerror or "" if isinstance(error, OSError) else str(error)


def _drop_privileges() -> None:
    _checked(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    header = struct.pack("Ii", _CAP_VERSION, 0)
    current = ctypes.create_string_buffer(24)
    _checked(libc.capget(header, current))
    kept = struct.unpack("6I", current.raw)[1] & 1 << _CAP_DAC_OVERRIDE
    _checked(libc.capset(header, struct.pack("6I", kept, kept, 0, 0, 0, 0)))


def _restrict_files(readable: Sequence[int], writable: Sequence[int], program: str) -> None:
    version = libc.syscall(_CREATE_RULESET, None, 0, 1)
    if version < 1:
        raise _Missing("the kernel has no Landlock, or the service's system call filter blocks it")
    handled = sum(rights for since, rights in _HANDLED.items() if since <= version)
    attributes = struct.pack("QQQ", handled, _TCP, _SCOPED)[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = _checked(libc.syscall(_CREATE_RULESET, attributes, len(attributes), 0))
    for fd in readable:
        _allow(ruleset, fd, _READ_FILE)
    for fd in writable:
        _allow(ruleset, fd, (_READ_FILE | _WRITE_FILE | _IOCTL_DEV) & handled)
    real = os.path.realpath(program)
    beside = os.path.dirname(os.path.dirname(real))  # noqa: PTH120 - pathlib takes longer to load than all of this
    for path in (*READABLE, real, f"{beside}/lib", f"{beside}/lib64"):
        _allow_path(ruleset, path, _EXECUTE | _READ_FILE)
    _allow_path(ruleset, "/dev/null", _READ_FILE | _WRITE_FILE)  # QEMU tries here which locks are supported
    _checked(libc.syscall(_RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)


def _allow_path(ruleset: int, path: str, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # not on this distribution
        return
    _allow(ruleset, fd, rights | (_READ_DIR if os.path.isdir(path) else 0))  # noqa: PTH112
    os.close(fd)


def _allow(ruleset: int, fd: int, rights: int) -> None:
    _checked(libc.syscall(_ADD_RULE, ruleset, 1, struct.pack("=Qi", rights, fd), 0))


def _refuse_sockets() -> None:
    machine = os.uname().machine
    if machine not in _CALLS:
        raise _Missing(f"system call numbers are not known for {machine}")
    architecture, *calls = _CALLS[machine]
    # Instructions of the classic packet filter: (code, jump if true, jump if false, constant).
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06
    program = [
        (load, 0, 0, 4),
        (equal, 1, 0, architecture),
        (answer, 0, 0, _KILL),
        (load, 0, 0, 0),
        (at_least, 0, 1, _X32),  # x32, a second set of numbers for the same calls
        (answer, 0, 0, _KILL),
    ]
    for number, error in zip(calls, (errno.EACCES, errno.ENOSYS), strict=True):
        program += [(equal, 0, 1, number), (answer, 0, 0, _REFUSE | error)]
    program.append((answer, 0, 0, _ALLOW))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    filter_program = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    _checked(libc.prctl(_PR_SET_SECCOMP, 2, filter_program, 0, 0))


def _limit_memory(limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    resource.setrlimit(resource.RLIMIT_STACK, (STACK if hard == resource.RLIM_INFINITY else min(STACK, hard), hard))
    if limit:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


if __name__ == "__main__":
    main()
