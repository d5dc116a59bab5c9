"""Whether an environment is what the lock names, and what goes before another lock is installed."""

import dataclasses

import pytest

from pipeline import execution, locked
from pipeline.errors import ProgramFailed
from pipeline.stages import BREAK_GLASS, BY_NAME, ROLLBACK
from tests.support_recheck import DATA, attend_here, house_of

LOCK = "numpy==2.3.5 \\\n    --hash=sha256:aa \\\n    --hash=sha256:ab\nscikit_learn==1.7 \\\n    --hash=sha256:bb\n"


@pytest.fixture
def site(tmp_path):
    return fill(tmp_path / "site-packages", "numpy-2.3.5", "Scikit.Learn-1.7", "pip-23.2.1")


def fill(site, *names):
    for name in names:
        (site / f"{name}.dist-info").mkdir(parents=True, exist_ok=True)
    return site


def test_the_versions_of_a_lock_are_read():
    lock = (
        "numpy==2.3.5 \\\n    --hash=sha256:ab\nuvloop==0.22 ; python_version > '3' \\\n    --hash=sha256:c\n"
    )
    assert locked.versions(lock) == {"numpy": "2.3.5", "uvloop": "0.22"}


def test_an_environment_of_the_lock_has_no_difference(site):
    assert locked.differences(LOCK, site) == []


@pytest.mark.parametrize(
    ("gone", "come", "said"),
    [
        ("numpy-2.3.5", "numpy-2.3.6", "numpy 2.3.6, not 2.3.5"),
        ("numpy-2.3.5", "numpy-2.3.5.post1", "numpy 2.3.5.post1, not 2.3.5"),
        ("numpy-2.3.5", "other-1", "numpy absent, not 2.3.5"),
        (None, "numpy-2.3.4", "numpy 2.3.4 and 2.3.5, not 2.3.5"),
        (None, "ipdb-0.13", "ipdb 0.13 is not in the lock"),
        (None, "~umpy-2.3.4", "~umpy 2.3.4 is not in the lock"),
    ],
)
def test_a_package_of_another_version_absent_or_unknown_is_told(site, gone, come, said):
    if gone:
        (site / f"{gone}.dist-info").rmdir()
    fill(site, come)
    assert said in locked.differences(LOCK, site)


def test_an_environment_that_inherits_may_lack_a_package_and_have_no_other(site):
    (site / "numpy-2.3.5.dist-info").rmdir()
    assert locked.differences(LOCK, site, inherits=True) == []
    fill(site, "numpy-2.3.4")
    assert locked.differences(LOCK, site, inherits=True) == ["numpy 2.3.4, not 2.3.5"]


def test_what_the_new_lock_has_otherwise_or_not_at_all_goes_first():
    other_hash = LOCK.replace("sha256:aa", "sha256:ac")
    assert locked.stale(LOCK, LOCK, {"numpy": "2.3.5", "scikit-learn": "1.7"}) == []
    assert locked.stale(LOCK, other_hash, {"numpy": "2.3.5", "scikit-learn": "1.7"}) == ["numpy"]
    assert locked.stale(LOCK, LOCK, {"numpy": "2.3.5", "ipdb": "0.13"}) == ["ipdb"]


def test_what_is_left_of_a_lock_is_equal_to_no_lock_and_knows_what_stayed():
    newer = LOCK.replace("numpy==2.3.5", "numpy==2.3.6")
    left = locked.left(LOCK, newer)
    assert locked.versions(left) == {"scikit_learn": "1.7"}
    assert locked.left(LOCK, LOCK) != LOCK
    # Whichever lock comes next, what may have changed goes first.
    assert locked.stale(left, LOCK, {"numpy": "2.3.6", "scikit-learn": "1.7"}) == ["numpy"]


# --- before a record -------------------------------------------------------------------------------------


@pytest.fixture
def house(tmp_path, monkeypatch):
    with house_of(tmp_path, DATA) as made:
        monkeypatch.setattr("pipeline.run.attend", attend_here)
        yield made


def test_no_stage_runs_in_another_environment_than_its_record_would_name(house):
    fill(house.site, "numpy-2.0.1")
    (house.site / "numpy-2.0.0.dist-info").rmdir()
    with pytest.raises(ProgramFailed, match=r"numpy 2\.0\.1, not 2\.0\.0.*make setup"):
        house.walk("data")
    assert house.records() == []
    # Nothing was begun, so what is there stays as good as it was.
    assert not (house.paths.build / "data").exists()


def test_what_was_made_while_the_environment_changed_is_not_recorded(house, monkeypatch):
    def attend(argv, **_):
        fill(house.site, "ipdb-0.13")
        return attend_here(argv)

    monkeypatch.setattr("pipeline.run.attend", attend)
    with pytest.raises(ProgramFailed, match=r"ipdb 0\.13 is not in the lock"):
        house.walk("data")
    assert house.records() == []


def test_an_environment_that_is_not_the_locks_stops_nobody_in_an_incident(house, capsys):
    fill(house.site, "ipdb-0.13")
    lock = (house.paths.root / "requirements.txt").read_text()
    for stage in (ROLLBACK, BREAK_GLASS):
        execution.demand_environment(stage, lock)
        assert "ipdb 0.13 is not in the lock" in capsys.readouterr().err
    with pytest.raises(ProgramFailed, match="ipdb"):
        execution.demand_environment(BY_NAME["promote"], lock)


def test_a_lock_that_is_edited_while_a_stage_runs_does_not_cost_its_result(house, monkeypatch):
    def attend(argv, **_):
        (house.root / "requirements.txt").write_text("numpy==2.0.1\n")
        return attend_here(argv)

    monkeypatch.setattr("pipeline.run.attend", attend)
    house.walk("data")
    assert len(house.records()) == 1


def test_a_stage_has_no_packages_from_elsewhere(house, monkeypatch):
    given = {}

    def attend(argv, env, **_):
        given.update(env)
        return attend_here(argv)

    monkeypatch.setattr("pipeline.run.attend", attend)
    house.walk("data")
    assert given["PYTHONPATH"] is None
    assert given["PYTHONNOUSERSITE"] == "1"


def test_a_stage_that_is_late_is_told_by_its_name_and_setting_and_may_say_so_itself_before(
    house, monkeypatch
):
    given = {}

    def attend(argv, timeout_s, late, **_):
        given.update(timeout_s=timeout_s, late=late)
        return attend_here(argv)

    monkeypatch.setattr("pipeline.run.attend", attend)
    house.put(dataclasses.replace(DATA, name="scan"))
    house.walk("scan")
    limit_s = house.runner().settings.scan.timeout_s
    assert given["timeout_s"] > limit_s
    assert given["late"].startswith(f"scan did not end within {limit_s:g} s and was stopped")
    assert "raise scan.timeout_s" in given["late"]
