"""The memory budget: what a version is taken to need, and when it fits."""

import threading

import pytest

from serve import memory
from serve.memory import OF_GRAPH, OF_VARIABLES, Budget, Refused, Size
from serve.status import Code


def version(tmp_path, **sizes):
    for name, size in sizes.items():
        file = tmp_path / name.replace("__", "/").replace("_pb", ".pb")
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"x" * size)
    return tmp_path


def test_estimate_weighs_graph_and_variables_by_what_was_measured(tmp_path):
    path = version(tmp_path, saved_model_pb=100, variables__index=20, variables__data=280, other=999)
    assert Size.of(path).estimate == OF_GRAPH * 100 + OF_VARIABLES * 300


def test_estimate_of_what_is_not_there_is_nothing(tmp_path):
    assert Size.of(tmp_path / "absent").estimate == 0


def test_loads_that_run_count_with_their_estimates_until_they_end(tmp_path):
    budget = Budget(1000, resident=lambda: 100, trim=lambda: None)
    path = version(tmp_path, variables__data=400)  # 600 in memory
    with budget.room("a", path), pytest.raises(Refused) as caught, budget.room("b", path):
        raise AssertionError("both cannot fit")
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    assert "700 of the 1000" in caught.value.message
    with budget.room("b", path):
        pass


def test_memory_that_an_unloaded_version_left_is_there_for_the_next_and_for_one_only(tmp_path):
    used = [100]
    budget = Budget(1000, resident=lambda: used[0], trim=lambda: None)
    path = version(tmp_path, variables__data=400)
    with budget.room("1", path):
        used[0] = 600
    with pytest.raises(Refused), budget.room("2", path):
        raise AssertionError("it cannot fit beside the first")
    with budget.leaving("1"):
        used[0] = 550  # the allocator keeps the rest
    with budget.room("2", path):
        pass
    with pytest.raises(Refused), budget.room("3", path):
        raise AssertionError("what the first left is in use")


def test_failed_load_gives_its_room_back(tmp_path):
    budget = Budget(1000, resident=lambda: 100, trim=lambda: None)
    path = version(tmp_path, variables__data=500)
    for _ in range(2):
        with pytest.raises(OSError, match="broken"), budget.room("a", path):
            raise OSError("broken")


def test_free_memory_is_given_back_before_a_version_is_refused(tmp_path):
    used = [800]
    budget = Budget(1000, resident=lambda: used[0], trim=lambda: used.__setitem__(0, 300))
    with budget.room("a", version(tmp_path, variables__data=400)):
        assert used == [300]


def test_resident_memory_of_this_process_is_measured():
    before = memory.resident()
    held = bytearray(b"x" * 50_000_000)
    assert before + 40_000_000 < memory.resident() < before + 400_000_000
    assert len(held) == 50_000_000
    memory.trim()


def test_two_loads_at_once_never_take_the_same_room(tmp_path):
    budget = Budget(1000, resident=lambda: 0, trim=lambda: None)
    path = version(tmp_path, variables__data=400)  # 600 in memory: one of them fits
    inside, done, refused = threading.Barrier(2, timeout=5), threading.Event(), []

    def load():
        try:
            with budget.room("a", path):
                inside.wait()
                assert done.wait(5)
        except Refused as error:
            refused.append(error)
            inside.wait()

    loads = [threading.Thread(target=load) for _ in range(2)]
    for each in loads:
        each.start()
    while not refused:
        done.wait(0.001)
    done.set()
    for each in loads:
        each.join(5)
    assert len(refused) == 1
