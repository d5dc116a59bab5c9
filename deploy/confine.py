"""Runs a program that is not trusted: it sees the files that it is given, no network and no secrets of ours.

What it started ends with it, and with whoever stops this process.

    python -I -S confine.py PLAN.json PROGRAM ARGUMENT …

The plan is `{"read": [paths], "write": [paths], "report": path}`. What really holds on this kernel is written to the
report before the program starts, so that whoever started it can say what does not: without Landlock (Linux 5.13) the
program sees every file of its user, without a network namespace and Landlock's fourth version it reaches the network.
Nothing but the standard library is needed, and no right of root: https://docs.kernel.org/userspace-api/landlock.html,
https://man7.org/linux/man-pages/man7/user_namespaces.7.html.
"""

import contextlib
import ctypes
import json
import os
import signal
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NoReturn

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG, _PATH_BENEATH = 1, 1
_READ = 0b1101  # execute, read a file, list a folder
_OF_A_FILE = 0b1100000000000111  # execute, write, read, truncate, ioctl on a device
# How many kinds of access to files each version of Landlock knows.
_KINDS = {1: 13, 2: 14, 3: 15, 4: 15}
_KINDS_NOW = 16
_WITH_NETWORK, _WITH_SCOPES = 4, 6
_NEW_USER, _NEW_NET, _NEW_MOUNTS, _NEW_IPC = 0x10000000, 0x40000000, 0x00020000, 0x08000000
_NEW_PROCESSES = 0x20000000
_MS_REC_PRIVATE = 0x4000 | 1 << 18
_PR_SET_PDEATHSIG, _CHILD_SUBREAPER = 1, 36
_NO_NEW_PRIVS, _DROP_BOUND, _CAPABILITIES = 38, 24, 64
_SOCKETS = "/run"

_libc = ctypes.CDLL(None, use_errno=True)


def main(plan_path: str, argv: list[str]) -> None:
    """Runs the program confined, tells how far, and leaves nothing that it started."""
    plan = json.loads(Path(plan_path).read_text())
    report = os.open(plan["report"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    namespaces = _separate()
    _libc.prctl(_CHILD_SUBREAPER, 1, 0, 0, 0)
    if first := os.fork():
        _leave_as(first, _end_all)
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # The first process of a namespace is deaf to its own signals, as no program expects; and with it all others end.
    if namespaces and (program := os.fork()):
        _leave_as(program, os._exit)
    _libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
    for capability in range(_CAPABILITIES):
        _libc.prctl(_DROP_BOUND, capability, 0, 0, 0)
    version = _landlock(plan["read"], plan["write"])
    os.write(report, json.dumps(_told(namespaces, version)).encode())
    os.execv(argv[0], argv)


def _leave_as(program: int, leave: Callable[[int], NoReturn]) -> NoReturn:
    """Waits for the program, and leaves with its exit status.

    Orphans, in whichever session, come to this process, which ends them. In a process namespace they end with its first
    process even if this one is killed.
    """
    signal.signal(signal.SIGTERM, lambda *_: leave(128 + signal.SIGTERM))
    status = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
    leave(status if status >= 0 else 128 - status)


def _end_all(status: int) -> NoReturn:
    """Ends each process below this one, and leaves: of one that ends, those below it come to this one."""
    with contextlib.suppress(ChildProcessError):
        while True:
            for pid in _children():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            os.waitpid(-1, 0)
    os._exit(status)


def _children() -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(path.read_text().rpartition(")")[2].split()[1])  # proc(5), field 4
            if parent == os.getpid():
                yield int(path.parent.name)


def _told(namespaces: bool, version: int) -> dict:
    """What holds, in words: `files` and `network` say by what means; empty where nothing keeps the program off."""
    network = "namespace" if namespaces else "landlock, TCP alone" if version >= _WITH_NETWORK else ""
    return {"files": f"landlock {version}" if version else "", "network": network}


def _separate() -> bool:
    """Moves into a network, a mount and a user namespace of its own; False where the kernel does not let it."""
    user, group = os.getuid(), os.getgid()
    if _libc.unshare(_NEW_USER | _NEW_NET | _NEW_MOUNTS | _NEW_IPC | _NEW_PROCESSES) != 0:
        return False
    maps = (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1"))
    with contextlib.suppress(OSError):  # then files are reached as nobody's, and the network still not at all
        for name, text in maps:
            Path("/proc/self", name).write_text(text)
    # Sockets that lie in the file system, as Docker's, are reached across network namespaces.
    _libc.mount(b"none", b"/", None, _MS_REC_PRIVATE, None)
    _libc.mount(b"none", _SOCKETS.encode(), b"tmpfs", 0, None)
    return True


def _landlock(readable: Iterable[str], writable: Iterable[str]) -> int:
    """Leaves this process the named paths alone; returns Landlock's version, 0 where there is none."""
    version = _libc.syscall(_CREATE_RULESET, None, 0, _VERSION_FLAG)
    if version < 1:
        return 0
    every = (1 << _KINDS.get(version, _KINDS_NOW)) - 1
    members = [every]
    if version >= _WITH_NETWORK:
        members.append(0b11)  # bind and connect of TCP
    if version >= _WITH_SCOPES:
        members.append(0b11)  # abstract sockets and signals of others
    attributes = struct.pack(f"={len(members)}Q", *members)
    ruleset = _libc.syscall(_CREATE_RULESET, attributes, len(attributes), 0)
    if ruleset < 0:
        return 0
    for access, paths in ((_READ, readable), (every, writable)):
        for path in paths:
            _allow(ruleset, path, access)
    return version if _libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0 else 0


def _allow(ruleset: int, path: str, access: int) -> None:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # what is not there needs no leave
    if not Path(path).is_dir():
        access &= _OF_A_FILE
    _libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", access, handle), 0)
    os.close(handle)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
