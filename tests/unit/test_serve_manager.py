"""The manager, tick by tick: what is loaded follows what is wanted."""

import threading
from pathlib import Path

import pytest

from serve import manager as manager_module
from serve.leases import Routes
from serve.manager import LoadPolicy, Manager
from serve.memory import Budget
from serve.status import Code, ServingError

AT_ONCE = LoadPolicy(retries=2, interval_s=-1)
ALL = {1: Path("1"), 2: Path("2"), 3: Path("3")}


class Fake:
    """A model that notes when it is closed; or what loading it raises."""

    def __init__(self, path, closed, error=None):
        self.path, self.closed, self.error = path, closed, error

    def close(self):
        self.closed.append(self.path.name)
        if self.error:
            raise self.error


class World:
    """A manager whose loads are noted, and can be told to fail."""

    def __init__(self, policy=AT_ONCE, **options):
        self.loaded, self.closed, self.errors = [], [], {}
        self.routes = Routes()
        self.manager = Manager(self.load, self.routes, policy, **options)

    def load(self, path):
        self.loaded.append(path.name)
        if path.name in self.errors:
            raise self.errors[path.name]
        return Fake(path, self.closed)

    def want(self, *numbers, name="m"):
        self.manager.want(name, {number: ALL.get(number, Path(str(number))) for number in numbers})

    def tick(self, times=1):
        for _ in range(times):
            self.manager.tick()

    def states(self, name="m"):
        """Each version's state, oldest first."""
        return {each.number: each.state.name for each in reversed(self.manager.versions(name))}

    def answering(self):
        return self.routes.find("m", None, None).servable.version


def test_new_version_is_available_before_the_old_one_unloads():
    world = World()
    world.want(1)
    world.tick()
    assert world.states() == {1: "AVAILABLE"}
    world.want(2)
    world.tick()
    assert (world.states(), world.answering()) == ({1: "AVAILABLE", 2: "AVAILABLE"}, 2)
    world.tick()
    assert (world.states(), world.closed) == ({1: "UNLOADING", 2: "AVAILABLE"}, [])
    world.tick()
    assert (world.states(), world.closed) == ({1: "END", 2: "AVAILABLE"}, ["1"])


def test_one_action_a_tick_and_the_highest_version_first():
    world = World()
    world.want(1, 3, 2)
    seen = []
    for _ in range(4):
        world.tick()
        seen.append(world.loaded[:])
    assert seen == [["3"], ["3", "2"], ["3", "2", "1"], ["3", "2", "1"]]
    assert world.answering() == 3


def test_version_that_waits_for_its_turn_is_in_start():
    world = World()
    world.want(1, 2)
    world.tick()
    assert world.states() == {1: "START", 2: "AVAILABLE"}


def test_version_that_failed_stays_ended_with_its_error_and_the_old_one_serves():
    world = World()
    world.want(1)
    world.tick()
    world.errors["2"] = ServingError(Code.DATA_LOSS, "broken")
    world.want(2)
    world.tick(5)
    world.want(2)
    world.tick(5)
    assert world.loaded == ["1", "2", "2", "2"]
    assert (world.states(), world.answering()) == ({1: "AVAILABLE", 2: "END"}, 1)
    assert str(world.manager.versions("m", 2)[0].error) == "DATA_LOSS: broken"


def test_failed_version_is_tried_again_once_it_was_not_wanted_in_between():
    world = World()
    world.errors["2"] = OSError("half of it is there")
    world.want(2)
    world.tick(2)
    assert str(world.manager.versions("m", 2)[0].error) == "UNKNOWN: OSError: half of it is there"
    del world.errors["2"]
    world.want()
    world.tick()
    world.want(2)
    world.tick()
    assert world.states() == {2: "AVAILABLE"}


def test_settled_is_the_highest_version_that_is_available_or_ended_whatever_is_wished_anew():
    world = World()
    world.errors["2"] = OSError("broken")
    world.want(1, 2)
    assert world.manager.settled("m") is None
    world.tick(2)
    for _ in range(2):
        assert world.manager.settled("m").number == 2
        world.want(1, 2)  # the next look at the file system, before the tick
    world.want(3)
    assert world.manager.settled("m") is None


def test_ended_versions_stay_listed_newest_first():
    world = World()
    for number in (1, 2, 3):
        world.want(number)
        world.tick(4)
    world.want()
    world.tick(3)
    assert world.states() == {1: "END", 2: "END", 3: "END"}
    assert [(each.number, each.error) for each in world.manager.versions("m")] == [
        (3, None),
        (2, None),
        (1, None),
    ]
    with pytest.raises(ServingError, match=r"Servable not found for request: Latest\(m\)"):
        world.answering()


def test_unload_waits_for_what_still_runs_and_nothing_new_begins():
    world = World()
    world.want(1)
    world.tick()
    lease = world.routes.acquire("m", 1, None)
    world.want(2)
    world.tick(5)
    assert (world.states()[1], world.closed) == ("UNLOADING", [])
    with pytest.raises(ServingError, match=r"Specific\(m, 1\)"):
        world.routes.acquire("m", 1, None)
    lease.release()
    world.tick(2)
    assert (world.states()[1], world.closed) == ("END", ["1"])


def test_request_that_never_ends_keeps_no_other_version_from_loading():
    world = World()
    world.want(1)
    world.tick()
    world.routes.acquire("m", 1, None)
    for number in (2, 3):
        world.want(number)
        world.tick(4)
    assert (world.states(), world.answering()) == ({1: "UNLOADING", 2: "END", 3: "AVAILABLE"}, 3)


def test_going_back_to_a_version_loads_it_anew():
    world = World()
    world.want(1)
    world.tick()
    world.want(2)
    world.tick(4)
    world.want(1)
    world.tick(4)
    assert (world.loaded, world.states()) == (["1", "2", "1"], {1: "AVAILABLE", 2: "END"})


def test_version_on_its_way_out_is_loaded_anew_when_it_is_gone():
    world = World()
    world.want(1)
    world.tick()
    lease = world.routes.acquire("m", 1, None)
    world.want(2)
    world.tick(3)
    world.want(1)
    world.tick(3)
    assert world.states() == {1: "UNLOADING", 2: "AVAILABLE"}
    lease.release()
    world.tick(5)
    assert (world.loaded, world.states()) == (["1", "2", "1"], {1: "AVAILABLE", 2: "END"})


def test_version_that_is_wanted_again_before_it_left_just_stays():
    world = World()
    world.errors["2"] = OSError("broken")
    world.want(1)
    world.tick()
    world.want(2)
    world.tick(3)
    world.want(1)
    world.tick(3)
    assert (world.loaded, world.states()[1]) == (["1", "2", "2", "2"], "AVAILABLE")


def test_model_that_is_not_wanted_any_more_goes_and_others_stay():
    world = World()
    world.want(1, 2)
    world.want(1, name="other")
    world.tick(3)
    world.want()
    world.tick(6)
    assert (world.states(), world.states("other")) == ({1: "END", 2: "END"}, {1: "AVAILABLE"})


def test_version_that_is_not_wanted_before_its_turn_is_never_loaded():
    world = World()
    world.want(1, 2)
    world.tick()
    world.want(2)
    world.tick(2)
    assert (world.loaded, world.states()) == (["2"], {1: "END", 2: "AVAILABLE"})


def in_thread(job):
    thread = threading.Thread(target=job)
    thread.start()
    return thread


def test_version_that_becomes_unwanted_during_its_retries_is_cancelled():
    world = World(LoadPolicy(retries=5, interval_s=600))
    tried = threading.Event()
    world.errors["1"] = ServingError(Code.NOT_FOUND, "no file")

    def load(path):
        tried.set()
        raise world.errors["1"]

    world.manager._load = load
    world.want(1)
    ticking = in_thread(world.tick)  # which is busy with the retries: this is what no threads to load means
    assert tried.wait(5)
    world.want(2)
    ticking.join(5)
    assert not ticking.is_alive()
    assert str(world.manager.versions("m", 1)[0].error) == "NOT_FOUND: no file"
    del world.manager._load


def test_stop_ends_the_wait_for_the_next_try():
    world = World(LoadPolicy(retries=5, interval_s=600))
    world.errors["1"] = OSError("broken")
    world.want(1)
    ticking = in_thread(world.tick)
    world.manager.stop()
    ticking.join(5)
    assert not ticking.is_alive()


def test_threads_that_load_keep_one_slow_version_from_blocking_the_rest():
    world = World(LoadPolicy(retries=0, load_threads=2, unload_threads=1))
    go = threading.Event()

    def load(path):
        if path.name == "3":
            assert go.wait(5)
        return Fake(path, world.closed)

    world.manager._load = load
    world.want(3, 1)
    world.tick(2)
    wait_for(world.manager, lambda: world.states() == {1: "AVAILABLE", 3: "LOADING"})
    go.set()
    wait_for(world.manager, lambda: world.states() == {1: "AVAILABLE", 3: "AVAILABLE"})
    world.want(3)
    world.tick(2)
    wait_for(world.manager, lambda: world.states()[1] == "END")
    assert world.closed == ["1"]


def wait_for(manager, condition):
    with manager.changed:
        assert manager.changed.wait_for(condition, 5)


def test_first_loads_run_side_by_side_and_later_ones_one_by_one():
    world = World(LoadPolicy(retries=0))
    together = threading.Barrier(3, timeout=5)

    def load(path):
        together.wait()
        return Fake(path, world.closed)

    world.manager._load = load
    world.want(1, 2, 3)
    world.manager.start(lambda: set(world.states().values()) == {"AVAILABLE"}, 4)
    world.manager.stop()
    assert world.states() == {1: "AVAILABLE", 2: "AVAILABLE", 3: "AVAILABLE"}


def test_loads_beside_what_serves_have_a_lower_priority_and_the_first_has_not(monkeypatch):
    lowered = []
    monkeypatch.setattr(manager_module.threads, "_lower", lowered.append)
    world = World()
    world.want(1)
    world.manager.start(lambda: world.states() == {1: "AVAILABLE"}, 1)
    world.manager.stop()
    world.want(2)
    world.tick()
    assert lowered[0] == 0
    assert lowered[1] > 0


def test_model_that_cannot_be_closed_is_gone_all_the_same():
    world = World()
    world.manager._load = lambda path: Fake(path, world.closed, OSError("stuck"))
    world.want(1)
    world.tick()
    world.want()
    world.tick(3)
    assert world.states() == {1: "END"}


def version_of(tmp_path, number, size):
    path = tmp_path / str(number)
    (path / "variables").mkdir(parents=True)
    (path / "variables" / "variables.data-00000-of-00001").write_bytes(b"v" * size)
    return path


def test_version_that_does_not_fit_is_refused_at_once_and_the_old_one_serves(tmp_path):
    budget = Budget(10_000, resident=lambda: 5_000, trim=lambda: None)
    world = World(budget=budget)
    world.manager.want("m", {1: version_of(tmp_path, 1, 3_000)})
    world.tick()
    assert world.states() == {1: "AVAILABLE"}
    world.manager.want("m", {2: version_of(tmp_path, 2, 4_000)})
    world.tick(5)
    assert (world.loaded, world.states(), world.answering()) == (["1"], {1: "AVAILABLE", 2: "END"}, 1)
    assert str(world.manager.versions("m", 2)[0].error) == (
        "RESOURCE_EXHAUSTED: Insufficient resources to load servable {name: m version: 2}: it is taken to need 6000 "
        "bytes, and 5000 of the 10000 of --memory_budget_bytes are in use"
    )


def test_load_without_memory_fails_and_takes_nothing_with_it():
    world = World(LoadPolicy(retries=0))
    world.errors["1"] = MemoryError()
    world.want(1)
    world.tick()
    assert world.manager.versions("m", 1)[0].error.code is Code.RESOURCE_EXHAUSTED
