"""The server's doors: ports that are looked at before models load, and opened when these are there."""

import errno
import socket

import grpc

from serve.status import Code, ServingError

_BACKLOG = 2048


def reserve(address: str, port: int) -> socket.socket:
    """Binds a TCP port without listening: clients are refused. Raises UNAVAILABLE if it cannot be had."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise _not_here(address, error) from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
    except OSError as error:
        listener.close()
        raise _cannot_listen(address, port, error) from error
    return listener


def open_http(listener: socket.socket) -> None:
    """Begins to accept connections on a reserved port."""
    try:
        listener.listen(_BACKLOG)
    except OSError as error:
        address, port = listener.getsockname()[:2]
        raise _cannot_listen(address, port, error) from error


def open_grpc(
    server: grpc.Server,
    address: str,
    port: int,
    socket_path: str,
    credentials: grpc.ServerCredentials | None = None,
) -> None:
    """Binds the gRPC server's port (0: none) and Unix socket, both with TLS if there are credentials; starts it."""
    host = f"[{address}]" if ":" in address else address
    targets = [f"{host}:{port}"] if port else []
    targets += [f"unix:{socket_path}"] if socket_path else []
    for target in targets:
        try:
            bound = (
                server.add_secure_port(target, credentials)
                if credentials
                else server.add_insecure_port(target)
            )
        except RuntimeError:
            bound = 0
        if not bound:
            raise ServingError(
                Code.UNAVAILABLE,
                f"cannot listen on {target} for gRPC: is it taken? Stop what uses it, or choose another",
            )
    server.start()


def _cannot_listen(address: str, port: int, error: OSError) -> ServingError:
    if error.errno == errno.EADDRNOTAVAIL:
        return _not_here(address, error)
    move = "Stop what uses the port, or choose another"
    if error.errno in (errno.EACCES, errno.EPERM):
        move = "Choose a port from 1024 on, or give the process the right to this one"
    return ServingError(
        Code.UNAVAILABLE, f"cannot listen on {address}:{port}: {error.strerror or error}. {move}"
    )


def _not_here(address: str, error: OSError | UnicodeError) -> ServingError:
    reason = getattr(error, "strerror", None) or error
    move = "Give an address of this machine: 127.0.0.1 for clients on it alone, 0.0.0.0 for all"
    return ServingError(Code.UNAVAILABLE, f"--address={address} is no address here: {reason}. {move}")
