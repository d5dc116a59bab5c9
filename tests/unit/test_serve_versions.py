"""What the manager does next, from the states of versions alone: TF Serving's availability-preserving policy."""

import pytest

from serve.versions import State, Version, next_action

NEW, LOADING, READY, LEAVING, ENDED = State


def version(name, number, state, wanted=True):
    made = Version(name, number, None)
    made.state, made.wanted = state, wanted
    return made


def model(*versions, name="m"):
    """A model's versions from (number, state, wanted)."""
    return {number: version(name, number, state, wanted) for number, state, wanted in versions}


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        ([], None),
        ([(1, NEW, True)], "load 1"),
        ([(1, NEW, True), (3, NEW, True), (2, NEW, True)], "load 3"),
        ([(1, LOADING, True)], None),
        ([(1, READY, True)], None),
        # A new version comes before the old one goes.
        ([(1, READY, False), (2, NEW, True)], "load 2"),
        ([(1, READY, False), (2, LOADING, True)], None),
        ([(1, READY, False), (2, READY, True)], "unload 1"),
        # A version that failed leaves the old one where it is.
        ([(1, READY, False), (2, ENDED, True)], None),
        # Of several old ones only one is kept, and the lowest goes first.
        ([(1, READY, False), (2, READY, False), (3, NEW, True)], "unload 1"),
        ([(1, READY, False), (2, READY, False), (3, READY, True)], "unload 1"),
        # Nothing is wanted: all go.
        ([(1, READY, False)], "unload 1"),
        ([(2, READY, False), (1, LEAVING, False)], "unload 2"),
        # One of several wanted is ready: the old one goes before the rest comes.
        ([(1, READY, False), (2, READY, True), (3, NEW, True)], "unload 1"),
        # What is not wanted is not loaded.
        ([(1, NEW, False)], None),
        ([(1, LEAVING, False), (2, NEW, True)], "load 2"),
    ],
)
def test_next_action_preserves_availability(versions, expected):
    action = next_action([model(*versions)])
    told = action and f"{'unload' if action.unload else 'load'} {action.version.number}"
    assert told == expected


def test_one_action_over_all_models_and_unloading_comes_first():
    a, b = model((1, NEW, True), name="a"), model((1, READY, False), name="b")
    action = next_action([a, b])
    assert (str(action.version), action.unload) == ("{name: b version: 1}", True)


def test_states_have_the_numbers_of_model_version_status():
    assert [(state.name, state.value) for state in State] == [
        ("START", 10), ("LOADING", 20), ("AVAILABLE", 30), ("UNLOADING", 40), ("END", 50),
    ]  # fmt: skip
