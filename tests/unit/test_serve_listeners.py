"""Why a port cannot be listened on, and what to do about it."""

import errno
import os
import socket

import pytest

from serve import listeners
from serve.status import Code, ServingError


def refusal(monkeypatch, number, port=8501):
    """What is said if binding fails by that errno."""

    class Taken:
        def __init__(self, *_):
            pass

        def setsockopt(self, *_):
            pass

        def bind(self, where):
            raise OSError(number, os.strerror(number))

        def close(self):
            pass

    monkeypatch.setattr(socket, "socket", Taken)
    with pytest.raises(ServingError) as refused:
        listeners.reserve("127.0.0.1", port)
    assert refused.value.code is Code.UNAVAILABLE
    return refused.value.message


def test_name_that_leads_nowhere_is_refused_by_its_flag(monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ServingError) as refused:
        listeners.reserve("foo.invalid", 8501)
    assert refused.value.message == (
        "--address=foo.invalid is no address here: Name or service not known. "
        "Give an address of this machine: 127.0.0.1 for clients on it alone, 0.0.0.0 for all"
    )


@pytest.mark.parametrize("name", ["a..b", "a" * 64 + ".example"])
def test_text_that_is_no_name_is_refused_by_its_flag(name):
    with pytest.raises(ServingError, match=f"--address={name} is no address here: .*0.0.0.0 for all"):
        listeners.reserve(name, 8501)


def test_address_of_another_machine_is_refused_by_its_flag(monkeypatch):
    told = refusal(monkeypatch, errno.EADDRNOTAVAIL)
    assert told.startswith(
        "--address=127.0.0.1 is no address here: Cannot assign requested address. Give an "
    )


def test_port_that_is_taken_or_not_allowed_is_named(monkeypatch):
    assert refusal(monkeypatch, errno.EADDRINUSE) == (
        "cannot listen on 127.0.0.1:8501: Address already in use. Stop what uses the port, or choose another"
    )
    assert refusal(monkeypatch, errno.EACCES, port=80) == (
        "cannot listen on 127.0.0.1:80: Permission denied. "
        "Choose a port from 1024 on, or give the process the right to this one"
    )
