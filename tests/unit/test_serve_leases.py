"""Which version a request means, and how long it is kept."""

import threading

import pytest

from serve.leases import Handle, Routes
from serve.model import Servable
from serve.status import ServingError


def routes(*versions, **labels):
    made = Routes()
    made.replace("m", [Handle(Servable("m", version, f"model {version}")) for version in versions])
    made.relabel({"m": labels})
    return made


@pytest.mark.parametrize(
    ("asked", "answers"),
    [((None, None), 3), ((1, None), 1), ((None, "stable"), 2), ((None, ""), 3)],
)
def test_request_means_its_version_its_label_or_the_highest_available(asked, answers):
    lease = routes(2, 3, 1, stable=2).acquire("m", *asked)
    with lease as servable:
        assert (servable.version, lease.model) == (answers, f"model {answers}")


@pytest.mark.parametrize(
    ("name", "asked", "message"),
    [
        ("x", (None, None), "NOT_FOUND: Servable not found for request: Latest(x)"),
        ("x", (1, None), "NOT_FOUND: Servable not found for request: Specific(x, 1)"),
        ("m", (9, None), "NOT_FOUND: Servable not found for request: Specific(m, 9)"),
        ("m", (None, "gone"), "NOT_FOUND: Servable not found for request: Specific(m, 8)"),
        ("m", (None, "L"), "INVALID_ARGUMENT: Unrecognized servable version label: L"),
        ("x", (None, "stable"), "INVALID_ARGUMENT: Unrecognized servable version label: stable"),
    ],
)
def test_what_is_not_there_is_refused_in_tf_servings_words(name, asked, message):
    for ask in (routes(1, stable=1, gone=8).find, routes(1, stable=1, gone=8).acquire):
        with pytest.raises(ServingError) as caught:
            ask(name, *asked)
        assert str(caught.value) == message


def test_model_without_versions_is_not_found():
    made = routes(1)
    made.replace("m", [])
    assert not made.any()
    with pytest.raises(ServingError, match=r"Latest\(m\)"):
        made.find("m", None, None)


def test_closed_version_gives_no_lease_and_is_idle_when_the_last_one_ended():
    handle = Handle(Servable("m", 1, None))
    leases = [handle.lease(), handle.lease()]
    handle.close()
    assert handle.lease() is None
    assert not handle.idle
    for lease in leases:
        lease.release()
    assert handle.idle


def test_version_that_closes_between_look_and_lease_is_passed_over_for_the_next():
    made = Routes()
    old, new = Handle(Servable("m", 1, None)), Handle(Servable("m", 2, None))
    made.replace("m", [old])
    find, looks = made.find, []

    def switched(*asked):
        found = find(*asked)
        looks.append(found)
        if len(looks) == 1:
            made.replace("m", [new])
            old.close()
        return found

    made.find = switched
    assert made.acquire("m", None, None).servable.version == 2
    assert looks == [old, new]


def test_leases_from_many_threads_are_all_counted():
    handle = Handle(Servable("m", 1, None))

    def use():
        for _ in range(2000):
            handle.lease().release()

    users = [threading.Thread(target=use) for _ in range(8)]
    for each in users:
        each.start()
    for each in users:
        each.join()
    handle.close()
    assert handle.idle
