import pytest

from serve import profiler


@pytest.mark.parametrize(
    ("address", "own"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True),
     ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("example.org", False), ("", False)],
)  # fmt: skip
def test_profiler_is_only_for_an_address_that_this_machine_alone_reaches(address, own):
    assert profiler.is_for(address) is own


@pytest.mark.parametrize(
    ("session", "host", "file"),
    [
        ("run", "a:1", "/r/run/a_1.xplane.pb"),
        ("", "", "/r/localhost.xplane.pb"),
        ("..", "a", None),
        ("a/b", "a", None),
        ("run", "../a", None),
        ("run\0", "a", None),
    ],
)
def test_trace_is_written_below_the_folder_that_was_named(session, host, file):
    request = profiler.ProfileRequest(repository_root="/r", session_id=session, host_name=host)
    found = profiler._target(request)
    assert found is None if file is None else str(found) == file
