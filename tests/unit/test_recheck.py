"""Executed again, a stage gives what its record says, or is found out; and `explain` says why one would run."""

import dataclasses
import json
import re

import pytest

from pipeline.__main__ import parser
from pipeline.child import function
from pipeline.digest import Digests
from pipeline.errors import GateRefused, IntegrityError, NoData, ProgramFailed, SettingsError
from pipeline.recheck import recheck
from pipeline.stages import STAGES
from tests.support import FACTS, settings
from tests.support_recheck import DATA, TRAIN, attend_here, house_of, turn

BOTH = ["data", "train"]


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A house of two stages, which run in this process."""
    monkeypatch.setattr("pipeline.run.attend", attend_here)
    with house_of(tmp_path, DATA, TRAIN) as made:
        yield made


@pytest.fixture
def twice(house):
    """A house whose training is executed twice."""
    house.edit("executions: ${TIDEGATE_TRAIN_EXECUTIONS:-1}", "executions: 2")
    return house


def drift(house, amount: float) -> None:
    turn(house.paths.state, "drift", str(amount))


# The table ---------------------------------------------------------------------------------------------------


def test_the_table_says_which_outputs_must_be_the_same_and_none_that_hold_times():
    assert {stage.name: stage.same for stage in STAGES if stage.same} == {
        "data": ("rows",),
        "train": ("model",),
        "evaluate": ("metrics", "predictions"),
        "export": ("savedmodel",),
        "image": ("layout",),
    }
    for stage in STAGES:
        assert set(stage.same) <= set(stage.outputs)
        assert not (stage.same and stage.deploys)


def test_what_is_executed_twice_has_a_tolerance_and_a_function_that_compares():
    made = settings()
    able = [stage for stage in STAGES if hasattr(getattr(made, stage.name, None), "executions")]
    assert [stage.name for stage in able] == ["train"]
    for stage in able:
        assert stage.same
        assert callable(function(stage.compare))
        assert getattr(made, stage.name).tolerance == 0


# Training twice ----------------------------------------------------------------------------------------------


def test_one_execution_claims_nothing(house):
    assert house.walk(*BOTH).done["train"].reproducible == ""
    assert (house.paths.state / "executions").read_text() == "1"


def test_two_executions_that_agree_are_recorded_as_such_and_the_first_is_kept(twice):
    made = twice.walk(*BOTH).done["train"]
    assert made.reproducible == "bit-identical in 2 executions"
    assert made.numbers["executions"] == 2
    log = json.loads((twice.paths.build / "train" / "log" / "log.json").read_text())
    assert log["execution"] == 1
    assert (twice.paths.state / "executions").read_text() == "2"
    assert list((twice.paths.state / "work").iterdir()) == []
    assert not (twice.paths.build / ".work" / "train-again").exists()


def test_the_class_that_was_reached_is_in_the_signed_record(twice):
    sha256 = twice.walk(*BOTH).done["train"].sha256
    trusted = twice.runner().authority.trust.verify(twice.blob(sha256).read_bytes())
    assert trusted.record.reproducible == "bit-identical in 2 executions"


def test_two_executions_within_the_tolerance_pass_with_the_largest_difference(twice):
    twice.edit("tolerance: 0\n", "tolerance: 0.00001\n")
    drift(twice, 3e-7)
    made = twice.walk(*BOTH).done["train"]
    assert made.reproducible == "equal within 1e-05 in 2 executions (largest difference 3e-07)"


def test_two_executions_that_differ_fail_the_stage_and_leave_no_checkpoint_that_would_do_so_again(twice):
    drift(twice, 0.25)
    with pytest.raises(GateRefused, match=r"the largest difference of a number is 0\.25") as caught:
        twice.walk(*BOTH)
    assert caught.value.exit_code == 3
    assert "train/model/weights.npz: first" in str(caught.value)
    maker = twice.runner()
    sha256 = maker.store.newest_record("train")
    made = maker.authority.trust.verify(twice.blob(sha256).read_bytes()).record
    assert (made.outcome, made.reproducible, made.numbers["largest_difference"]) == ("failed", "", 0.25)
    assert made.decided["number"] == 0.25
    assert list((twice.paths.state / "work").iterdir()) == []
    drift(twice, 0)
    assert twice.walk(*BOTH).done["train"].reproducible == "bit-identical in 2 executions"


def test_a_kill_in_the_second_execution_leaves_both_their_own_checkpoints(twice, monkeypatch):
    calls = []

    def attend(argv, **_):
        calls.append(argv)
        if len(calls) == 3:
            attend_here(argv)
            raise KeyboardInterrupt
        return attend_here(argv)

    monkeypatch.setattr("pipeline.run.attend", attend)
    with pytest.raises(KeyboardInterrupt):
        twice.walk(*BOTH)
    folders = sorted((twice.paths.state / "work").iterdir())
    left = {folder.name.removeprefix("train-")[16:]: [p.name for p in folder.iterdir()] for folder in folders}
    assert left == {"": ["checkpoint-1"], "-again": ["checkpoint-2"]}


# Recheck -----------------------------------------------------------------------------------------------------


def faults(house, names=BOTH, count=9) -> str:
    with pytest.raises(IntegrityError) as caught:
        recheck(house.runner(), names, count)
    assert caught.value.exit_code == 6
    return str(caught.value)


def test_hits_that_give_the_same_bytes_get_a_line_each_and_nothing_is_recorded_or_replaced(house, capsys):
    made = house.walk(*BOTH).done
    before = house.records()
    log = (house.paths.build / "train" / "log" / "log.json").read_bytes()
    recheck(house.runner(), BOTH, 9)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        f"✓ {name}: the same bytes as its record {made[name].sha256[:12]} names" for name in BOTH
    ]
    assert (house.paths.state / "executions").read_text() == "2"
    assert house.records() == before
    assert (house.paths.build / "train" / "log" / "log.json").read_bytes() == log
    assert list((house.paths.build / ".recheck").iterdir()) == []


def test_no_checkpoint_helps_a_recheck(house):
    made = house.walk(*BOTH).done["train"]
    left = house.paths.state / "work" / f"train-{made.key[:16]}"
    left.mkdir()
    (left / "checkpoint-9").write_text("weights")
    recheck(house.runner(), ["train"], 1)


def test_a_recheck_happens_under_the_facts_of_the_record(house, monkeypatch):
    house.walk("data")
    later = dataclasses.replace(FACTS, revision="1" * 40)
    monkeypatch.setattr("pipeline.ci.facts", lambda root: later)
    recheck(house.runner(), ["data"], 1)


def test_a_stage_that_depends_on_the_clock_is_found_out_with_both_digests_and_the_remedy(house, capsys):
    turn(house.paths.state, "clock")
    made = house.walk("data").done["data"]
    said = faults(house, ["data"])
    recorded, now = re.search(
        r"data/rows/clock\.txt: recorded ([0-9a-f]{64}), now ([0-9a-f]{64})", said
    ).groups()
    assert recorded != now
    assert "seed.txt" not in said
    for text in (made.sha256[:12], made.finished, "not deterministic", "processor", "--force data"):
        assert text in said
    assert f"✗ data: not what its record {made.sha256[:12]} names" in capsys.readouterr().out
    kept = house.paths.build / ".recheck" / "data" / "now" / "rows" / "clock.txt"
    assert kept.exists()
    assert str(kept.parents[1]) in said


def test_outputs_that_someone_forged_and_signed_are_found_out(house):
    house.walk(*BOTH)
    forged = house.forge(DATA, {"rows": {"seed.txt": b"evil", "clock.txt": b"noon"}})
    said = faults(house, ["data"])
    assert "data/rows/seed.txt: recorded" in said
    assert "clock.txt" not in said
    assert forged[:12] in said


def tree_of(house, stage: str, output: str) -> dict[str, str]:
    """The sha256 of each file of an output."""
    leaves = Digests(house.root / "none").tree(house.paths.build / stage / output).leaves
    return {leaf.path: leaf.sha256 for leaf in leaves}


def blob_of_seed(house):
    """The store's file of an output of data."""
    return house.blob(tree_of(house, "data", "rows")["seed.txt"])


def test_a_blob_whose_bytes_were_replaced_in_the_store_is_named(house):
    house.walk("data")
    blob = blob_of_seed(house)
    blob.chmod(0o644)
    blob.write_bytes(b"x" + blob.read_bytes()[1:])
    with pytest.raises(IntegrityError, match="data: the store does not hold what record") as caught:
        recheck(house.runner(), ["data"], 1)
    assert blob.name in str(caught.value)


def test_a_program_that_failed_hides_no_blob_that_was_replaced(house, monkeypatch):
    house.walk(*BOTH)
    blob = house.blob(tree_of(house, "train", "model")["architecture.json"])
    blob.chmod(0o644)
    blob.write_bytes(b"[]")

    def attend(argv, **_):
        raise ProgramFailed("data did not end within 1 s and was stopped.")

    monkeypatch.setattr("pipeline.run.attend", attend)
    said = faults(house)
    assert blob.name in said
    assert "data did not end" in said


def test_a_stage_whose_blob_is_gone_is_no_hit(house, capsys):
    house.walk("data")
    blob_of_seed(house).unlink()
    with pytest.raises(NoData, match="no hit"):
        recheck(house.runner(), ["data"], 1)
    assert "data/rows is no longer in the store" in capsys.readouterr().err


def test_a_stage_that_fails_now_is_not_what_its_record_says(house):
    house.walk("data")
    turn(house.paths.state, "fail")
    assert "it gave failed, and its record says passed: the rows are bad." in faults(house, ["data"])


@pytest.mark.parametrize(("tolerance", "holds"), [("0", False), ("0.00001", True), ("0.0000001", False)])
def test_a_recheck_of_training_asks_what_the_settings_ask(house, capsys, tolerance, holds):
    house.edit("tolerance: 0\n", f"tolerance: {tolerance}\n")
    drift(house, 3e-7)
    house.walk(*BOTH)
    if holds:
        recheck(house.runner(), ["train"], 1)
        assert "✓ train: equal within 1e-05 of what its record" in capsys.readouterr().out
    else:
        assert "train/model/weights.npz: recorded" in faults(house, ["train"])


def test_a_stage_that_could_not_be_executed_hides_no_fault_of_another(house, monkeypatch, capsys):
    turn(house.paths.state, "clock")
    house.walk(*BOTH)

    def attend(argv, **_):
        if ".recheck/train" in argv[-1]:
            raise ProgramFailed("train did not end within 1 s and was stopped.")
        return attend_here(argv)

    monkeypatch.setattr("pipeline.run.attend", attend)
    said = faults(house)
    assert "data/rows/clock.txt" in said
    assert "did not end within 1 s" in said
    assert "✗ train: could not be rechecked" in capsys.readouterr().out
    with pytest.raises(ProgramFailed, match="did not end"):
        recheck(house.runner(), ["train"], 1)


# Which hits --------------------------------------------------------------------------------------------------


def drawn(house, capsys, count, seed=None) -> tuple[str, ...]:
    recheck(house.runner(), BOTH, count, seed)
    return tuple(re.findall(r"✓ (\w+):", capsys.readouterr().out))


def test_a_sample_is_as_large_as_asked_and_a_seed_draws_it_again(house, capsys):
    house.walk(*BOTH)
    samples = {seed: drawn(house, capsys, 1, seed) for seed in range(8)}
    assert set(samples.values()) == {("data",), ("train",)}
    assert all(drawn(house, capsys, 1, seed) == sample for seed, sample in samples.items())
    assert drawn(house, capsys, 99) == ("data", "train")


def test_the_seed_of_a_sample_is_said_and_draws_it_again(house, capsys):
    house.walk(*BOTH)
    recheck(house.runner(), BOTH, 1)
    first = capsys.readouterr()
    seed = int(re.search(r"rechecking 1 of 2 hits: \w+ \(--recheck-seed (\d+) draws", first.err)[1])
    assert drawn(house, capsys, 1, seed) == tuple(re.findall(r"✓ (\w+):", first.out))


def test_what_would_run_is_no_hit_and_is_told(house, capsys):
    house.walk(*BOTH)
    house.edit("  epochs: 30\n", "  epochs: 31\n")
    assert drawn(house, capsys, 9) == ("data",)
    with pytest.raises(NoData, match="no hit to recheck") as caught:
        recheck(house.runner(), ["train"], 1)
    assert caught.value.exit_code == 4
    reason = "it would run: settings train epochs changed: 30 -> 31"
    assert f"train is no hit and is not rechecked: {reason}" in capsys.readouterr().err


@pytest.mark.parametrize("count", [0, -1])
def test_less_than_one_is_refused(house, count):
    with pytest.raises(SettingsError, match=f"--recheck is {count}; it must be at least 1"):
        recheck(house.runner(), BOTH, count)


def test_stages_whose_outputs_cannot_be_compared_are_refused_with_those_that_can(house):
    with pytest.raises(SettingsError, match="can be rechecked: data, train, evaluate, export, image"):
        recheck(house.runner(), ["scan", "promote"], 1)


def test_an_unprotected_ref_of_ci_does_not_train_by_way_of_a_recheck(house, monkeypatch):
    house.walk(*BOTH)
    house.put(dataclasses.replace(TRAIN, protected=True))
    monkeypatch.setenv("GITLAB_CI", "true")
    with pytest.raises(GateRefused, match="train: only a protected ref may do this"):
        recheck(house.runner(), ["train"], 1)


# The command line --------------------------------------------------------------------------------------------


def command(house, *arguments) -> int:
    """What `main` does with a command line, before it turns errors into exit codes."""
    parsed = parser().parse_args(arguments)
    return parsed.command(parsed, house.paths) or 0


def test_the_command_rechecks_and_leaves_with_six_for_what_is_not_as_recorded(house, capsys):
    house.walk(*BOTH)
    assert command(house, "run", "--recheck", "1", "data") == 0
    assert capsys.readouterr().out.startswith("✓ data: the same bytes")
    turn(house.paths.state, "clock")
    with pytest.raises(IntegrityError, match=r"data/rows/clock\.txt: recorded"):
        command(house, "run", "--recheck", "5", "--recheck-seed", "3", *BOTH)
    assert "--recheck-seed 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--recheck", "1", "--force", "data", "data"), "leave --force out"),
        (("--recheck-seed", "1", "data"), "give both"),
        (("--recheck", "1"), "name a stage, or --all"),
    ],
)
def test_options_that_do_not_go_together_are_refused(house, arguments, said):
    with pytest.raises(SettingsError, match=said):
        command(house, "run", *arguments)


def test_explain_tells_settings_environment_and_reads_item_by_item(house, capsys):
    house.walk(*BOTH)
    house.lock("2.0.1")
    house.edit("  epochs: 30\n", "  epochs: 31\n")
    house.edit("  learning_rate: 0.002\n", "  learning_rate: 0.001\n")
    house.edit("  seed: 20\n", "  seed: 21\n")
    house.walk("data")
    assert command(house, "explain", "train") == 0
    reasons = capsys.readouterr().out.partition("its key")[0].splitlines()
    assert [re.sub(r"[0-9a-f]{12}", "…", line) for line in reasons] == [
        "train runs, because:",
        "  environment requirements.txt changed: … -> …",
        "  reads data/rows changed: … -> …",
        "  settings train epochs changed: 30 -> 31",
        "  settings train learning_rate changed: 0.002 -> 0.001",
    ]


def test_explain_tells_a_changed_a_new_and_a_deleted_file_of_the_stage_by_name(house, capsys):
    house.put(dataclasses.replace(DATA, files=("code",)))
    (house.root / "code").mkdir()
    for name in ("changed.py", "deleted.py", "untouched.py"):
        (house.root / "code" / name).write_text("1")
    house.walk("data")
    (house.root / "code" / "changed.py").write_text("2 ")
    (house.root / "code" / "deleted.py").unlink()
    (house.root / "code" / "new.py").write_text("1")
    assert command(house, "explain", "data") == 0
    reasons = capsys.readouterr().out.partition("its key")[0]
    assert re.sub(r"[0-9a-f]{12}", "…", reasons).splitlines() == [
        "data runs, because:",
        "  files code/changed.py changed: … -> …",
        "  files code/deleted.py is gone",
        "  files code/new.py is new: …",
    ]
