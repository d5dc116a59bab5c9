"""TLS of the gRPC doors, as TF Serving's --ssl_config_file says it: PEM text in an SSLConfig."""

import os
import ssl
from typing import Any

import grpc

from serve.status import ServingError, invalid


def credentials(path: str) -> grpc.ServerCredentials | None:
    """What the gRPC server's doors ask for; None, plain text, without a file. Raises INVALID_ARGUMENT."""
    if not path:
        return None
    from serve import text_protos

    config = text_protos.read(path, text_protos.SSLConfig)
    _check(config, path)
    return grpc.ssl_server_credentials(
        [(config.server_key.encode(), config.server_cert.encode())],
        root_certificates=config.custom_ca.encode() or None,
        require_client_auth=config.client_verify,
    )


def _check(config: Any, path: str) -> None:
    """gRPC tells nothing of a key that does not fit its certificate until a client fails."""
    for name in ("server_key", "server_cert"):
        if not getattr(config, name):
            raise invalid(f"'{path}' has no {name}; it holds PEM text, and not the name of a file")
    if config.client_verify and not config.custom_ca:
        raise invalid(
            f"'{path}' has client_verify and no custom_ca; "
            "put the certificate in it that signed those of the clients"
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        _load(context, config)
        if config.custom_ca:
            context.load_verify_locations(cadata=config.custom_ca)
    except (ssl.SSLError, ValueError) as error:
        raise _refused(path, error) from None


def _load(context: ssl.SSLContext, config: Any) -> None:
    """The ssl module reads keys from files only; this one has no name, and is never on a disk."""
    if not hasattr(os, "memfd_create"):
        return  # not Linux: gRPC refuses what does not fit, in its own words
    with os.fdopen(os.memfd_create("pem"), "w") as file:
        file.write(f"{config.server_key}\n{config.server_cert}\n")
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}", password=_no_password)


def _no_password() -> str:
    raise ValueError("the key is encrypted; a server that starts by itself cannot ask for its password")


def _refused(path: str, error: Exception) -> ServingError:
    reason = getattr(error, "reason", None) or error
    return invalid(f"'{path}' holds no key and certificates that fit each other: {reason}")
