"""An examination as the job that signs reads it, which starts no Trivy: what counts, is refused, is waived."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from deploy.examine import Places, examine
from deploy.scan import scan
from pipeline.errors import NoData, ProgramFailed, SettingsError
from pipeline.stages import Context, Outcome
from tests.support_images import hand_image, model_image, tar
from tests.support_trivy import debian, given, site_package

ZLIB_WAIVED = "vulnerabilities:\n- {{id: CVE-2023-45853, statement: not linked, expired_at: {until}}}\n"


@pytest.fixture(scope="module")
def examined(tmp_path_factory) -> Context:
    """A vulnerable image that Trivy really examined, once for all tests here."""
    tmp = tmp_path_factory.mktemp("examined")
    files = site_package("requests", "2.19.1") | debian(zlib1g="1:1.2.13.dfsg-1")
    base = f"oci:{tmp}/base@{hand_image(tmp / 'base', tar(files))}"
    layout, _ = model_image(tmp, base=base)
    made = given(tmp, layout)
    examine(made.settings, Places(made.root, made.state, layout), print)
    return made


@pytest.fixture
def judging(examined, tmp_path, monkeypatch) -> Context:
    """The same, as a protected job in CI has it: with folders of its own, and no Trivy to be started."""

    def refuse(*_):
        raise AssertionError("the job that signs may not start Trivy")

    monkeypatch.setattr("deploy.trivy.run", refuse)
    shutil.copytree(examined.root, tmp_path / "repository")
    out = tmp_path / "out"
    out.mkdir()
    facts = dataclasses.replace(examined.facts, vendor="gitlab", protected=True)
    return dataclasses.replace(examined, root=tmp_path / "repository", out=out, state=tmp_path, facts=facts)


def folder(judging: Context) -> Path:
    (found,) = (judging.root / "build/examination").iterdir()
    return found


def edit(path: Path, change: Callable[[dict], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def verdict(judging: Context) -> dict:
    return json.loads((judging.out / "report/verdict.json").read_text())


def test_job_that_signs_judges_what_was_found_and_starts_no_trivy(judging):
    result = scan(judging)
    assert result.outcome is Outcome.FAILED
    assert {one["id"] for one in verdict(judging)["stopped_by"]} == {"CVE-2018-18074", "CVE-2023-45853"}
    assert result.predicate["scanner"]["version"] == "0.76.0"
    assert result.predicate["scanner"]["db"]["version"].startswith("sha256:")


def past(hours: float) -> str:
    return (datetime.now(UTC) - timedelta(hours=hours)).isoformat()


SAID: dict[str, tuple[Callable[[dict], object], type[Exception], str]] = {
    "another image": (lambda d: d.update(image="sha256:" + "0" * 64), NoData, "says that it is of sha256:0000"),
    "a format to come": (lambda d: d.update(format=2), NoData, "says that it is of"),
    "of yesterday": (lambda d: d.update(started=past(25), finished=past(24.9)), NoData, "last 24 hours is asked"),
    "of tomorrow": (lambda d: d.update(started=past(-1), finished=past(-2)), NoData, "last 24 hours is asked"),
    "ended before it began": (lambda d: d.update(started=past(1), finished=past(2)), NoData, "last 24 hours"),
    "without a time": (lambda d: d.pop("started"), NoData, "last 24 hours is asked"),
    "other files": (lambda d: d.update(repository="0" * 64), NoData, "other files than this commit's"),
    "a part left out": (lambda d: d["parts"].pop("repository"), NoData, "left out repository"),
    "parts of another shape": (lambda d: d.update(parts=[]), NoData, "left out image"),
    "Trivy that failed": (lambda d: d["parts"]["image"].update(exit_code=1), ProgramFailed, "ended with 1 on image"),
    "an exit status of nothing found": (
        lambda d: d["parts"]["image"].update(exit_code=0), ProgramFailed, "one of the two is wrong",
    ),
    "no database named": (lambda d: d.pop("database"), ProgramFailed, "says nothing of its database"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "error", "says"), SAID.values(), ids=SAID)
def test_examination_that_does_not_count_is_refused(judging, change, error, says):
    edit(folder(judging) / "examination.json", change)
    with pytest.raises(error, match=says):
        scan(judging)
    assert not (judging.out / "report").exists()


def nonsense(path: Path) -> None:
    path.write_text("<html>")


def elsewhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/hostname")


def deep(path: Path) -> None:
    path.write_text("[" * 100_000 + "]" * 100_000)


FILES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no report": ("image.json", Path.unlink, "is not JSON"),
    "a report that is none": ("image.json", nonsense, "is not JSON"),
    "a link to another file": ("image.json", elsewhere, "is not JSON"),
    "a report without an end": ("image.json", deep, "is not JSON"),
    "an empty report": ("image.json", lambda p: p.write_text("{}"), "names no SchemaVersion"),
    "a list": ("image.json", lambda p: p.write_text("[]"), "not a JSON object"),
    "a report of another image": (
        "image.json",
        lambda p: edit(p, lambda d: d["Metadata"].update(ImageID="sha256:" + "0" * 64)),
        "report is of the image sha256:0000",
    ),
    "a report of nothing": ("image.json", lambda p: edit(p, lambda d: d.pop("Metadata")), "is of the image None"),
    "findings taken out": ("image.json", lambda p: edit(p, lambda d: d.update(Results=[])), "one of the two is wrong"),
    "findings of another shape": (
        "image.json", lambda p: edit(p, lambda d: d.update(Results=[7])), "another shape",
    ),
    "an SBOM that is none": ("sbom.cdx.json", lambda p: p.write_text("{}"), "not CycloneDX"),
    "an SBOM of another form": ("sbom.spdx.json", lambda p: p.write_text("{}"), "not SPDX-2.3"),
    "an SBOM without its parts": (
        "sbom.cdx.json", lambda p: p.write_text('{"bomFormat": "CycloneDX"}'), "another shape than Trivy writes",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "change", "says"), FILES.values(), ids=FILES)
def test_what_a_hostile_trivy_left_is_an_error_and_never_a_pass(judging, name, change, says):
    change(folder(judging) / name)
    with pytest.raises(ProgramFailed, match=says):
        scan(judging)
    assert not (judging.out / "report").exists()


def test_report_of_another_trivy_than_the_locked_one_is_refused(judging):
    edit(folder(judging) / "image.json", lambda d: d["Trivy"].update(Version="0.69.4"))
    with pytest.raises(NoData, match=r"of Trivy 0\.69\.4, and the lock names 0\.76\.0"):
        scan(judging)


def test_examination_of_another_image_put_in_its_place_is_refused(judging, tmp_path):
    layout, image = model_image(tmp_path / "other", 2)
    other = dataclasses.replace(judging, inputs={**judging.inputs, "image/layout": layout})
    with pytest.raises(NoData, match="nobody examined"):
        scan(other)
    moved = folder(judging).rename(folder(judging).with_name(image.digest.removeprefix("sha256:")))
    with pytest.raises(NoData, match="says that it is of"):
        scan(other)
    edit(moved / "examination.json", lambda d: d.update(image=image.digest))
    with pytest.raises(ProgramFailed, match="report is of the image"):
        scan(other)


def test_file_of_the_repository_that_changed_since_is_noticed(judging):
    (judging.root / "model.py").write_text("units = 65\n")
    with pytest.raises(NoData, match="other files"):
        scan(judging)


def clean(judging: Context) -> None:
    """Takes the findings out of the report, as a scan of a clean image has none."""
    edit(folder(judging) / "image.json", lambda d: d.update(Results=[]))
    edit(folder(judging) / "examination.json", lambda d: d["parts"]["image"].update(exit_code=0))


DATABASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "as it was": (lambda f: None, ""),
    "one that did not know the canary": (
        lambda f: edit(f / "canary.json", lambda d: d.update(Results=[])), "empty or foreign",
    ),
    "one without a canary": (lambda f: (f / "canary.json").unlink(), "the canary was not looked for"),
    "an old one": (
        lambda f: edit(f / "examination.json", lambda d: d["database"].update(updated_at=past(24 * 30))), "30 days old",
    ),
    "one of the future": (
        lambda f: edit(f / "examination.json", lambda d: d["database"].update(updated_at=past(-72))), "to come",
    ),
    "one without a digest": (
        lambda f: edit(f / "examination.json", lambda d: d["database"].update(digest="latest")), "by digest",
    ),
    "none": (
        lambda f: edit(f / "examination.json", lambda d: d.update(database={"trouble": "nobody answers"})),
        "nobody answers",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "says"), DATABASES.values(), ids=DATABASES)
def test_clean_report_passes_with_a_database_that_could_find_something_alone(judging, change, says):
    clean(judging)
    change(folder(judging))
    result = scan(judging)
    assert result.outcome is (Outcome.NO_DATA if says else Outcome.PASSED)
    assert says in result.sentence


@pytest.mark.parametrize(
    ("until", "outcome"), [("2099-01-01", Outcome.PASSED), ("2020-01-01", Outcome.FAILED)]
)
def test_waiver_is_judged_when_the_record_is_signed_not_when_trivy_ran(judging, until, outcome):
    requests = (
        "- {id: CVE-2018-18074, statement: old, expired_at: 2099-01-01, purls: ['pkg:pypi/requests']}\n"
    )
    waived(judging, ZLIB_WAIVED.format(until=until) + requests)
    result = scan(judging)
    assert result.outcome is outcome
    accepted = {one["id"]: one["statement"] for one in verdict(judging)["accepted"]}
    assert accepted["CVE-2018-18074"] == "old"
    assert ("CVE-2023-45853" in accepted) is (outcome is Outcome.PASSED)
    assert any("ended on 2020-01-01" in said for said in result.warnings) is (outcome is Outcome.FAILED)


def waived(judging: Context, text: str) -> None:
    """Writes the ignore file, as the commit that was examined has it."""
    from deploy.examine import copied, tree_of

    (judging.root / "ignore.yaml").write_text(text)
    tree = tree_of(copied(judging.root), judging.root)
    edit(folder(judging) / "examination.json", lambda d: d.update(repository=tree))


def test_waiver_without_a_reason_is_refused(judging):
    waived(judging, "vulnerabilities:\n- {id: CVE-2023-45853, expired_at: 2099-01-01}\n")
    with pytest.raises(SettingsError, match="has no statement"):
        scan(judging)


def test_what_the_live_image_has_too_is_reported_where_it_cannot_be_fixed(judging, tmp_path):
    first = dataclasses.replace(judging, out=tmp_path / "first")
    first.out.mkdir()
    scan(first)
    live = {**judging.inputs, "champion/report": first.out / "report"}
    result = scan(dataclasses.replace(judging, inputs=live))
    assert result.outcome is Outcome.FAILED
    assert [one["id"] for one in verdict(judging)["stopped_by"]] == ["CVE-2018-18074"]
    (kept,) = [one for one in verdict(judging)["tolerated"] if one["id"] == "CVE-2023-45853"]
    assert kept["inherited"] is True
    assert (result.numbers["inherited_unfixable"], result.numbers["inherited_fixable"]) == (1, 1)
