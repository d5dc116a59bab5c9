"""Ports of this machine: free ones, and who holds one that is taken."""

import socket
from contextlib import ExitStack
from pathlib import Path

from pipeline.errors import SettingsError

_LISTEN = "0A"


def resolve(address: str) -> str:
    """The IP address behind `target.address`. Raises SettingsError where the name means nothing here."""
    try:
        return str(socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)[0][4][0])
    except (OSError, UnicodeError) as error:
        raise SettingsError(
            f"target.address is {address!r}, which is no address of this machine: {error}"
        ) from None


def reachable(ip: str, port: int) -> str:
    """HOST:PORT by which this machine itself reaches a server that listens on `ip`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(ip, ip)  # noqa: S104
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def free(count: int) -> tuple[int, ...]:
    """Different loopback ports that nothing listens on at this moment."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return tuple(one.getsockname()[1] for one in sockets)


def taken(ip: str, port: int) -> bool:
    """Whether a server could not listen on this port now."""
    with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ip, port))
        except OSError:
            return True
        return False


def holder(port: int, proc: Path = Path("/proc")) -> str:
    """Which process listens on a port, as `process 12 (NAME)`; `another process` where that is hidden."""
    inodes = {
        f"socket:[{inode}]" for table in ("tcp", "tcp6") for inode in _listening(proc / "net" / table, port)
    }
    for folder in proc.glob("[0-9]*") if inodes else ():
        if inodes & _open_files(folder / "fd"):
            command = (
                (folder / "cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")
            )
            return f"process {folder.name} ({command[:80]})"
    return "another process"


def _listening(table: Path, port: int) -> list[str]:
    """Inodes of the sockets that listen on `port` (proc(5), /proc/net/tcp)."""
    try:
        rows = [line.split() for line in table.read_text().splitlines()[1:]]
    except OSError:
        return []
    return [row[9] for row in rows if row[3] == _LISTEN and int(row[1].rpartition(":")[2], 16) == port]


def _open_files(folder: Path) -> set[str]:
    found = set()
    try:
        for link in folder.iterdir():
            found.add(str(link.readlink()))
    except OSError:
        pass  # another user's process, or one that has just ended
    return found
