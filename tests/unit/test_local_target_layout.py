"""How the local target lays out what it serves, and finds what was left behind; nothing is started here."""

import pytest

from deploy import strays
from deploy.targets import TARGETS
from deploy.targets.base import Release, Version
from deploy.targets.local import Local
from pipeline.errors import IntegrityError, ProgramFailed
from pipeline.run import Process
from pipeline.settings import Target
from tests import support

RELEASE = Release("oci:registry", "sha256:" + "ab" * 32, 7)


class Image:
    """Stands in for `deploy.oci.unpack`: writes these files, and counts how often it was asked."""

    def __init__(self, *files: str, fails: Exception | None = None):
        self.files, self.fails, self.asked = files, fails, 0

    def __call__(self, registry, digest, into):
        self.asked += 1
        for name in self.files:
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            (into / name).write_text("x")
        if self.fails:
            raise self.fails


def _target(tmp_path, image) -> Local:
    return Local(support.settings(), tmp_path, "staging", unpack=image)


def test_model_is_served_under_the_number_that_it_was_published_under(tmp_path):
    folder = _target(
        tmp_path, Image("models/digits/1/saved_model.pb", "models/digits/1/variables/v")
    )._unpacked(RELEASE)
    assert support.tree(folder) == {"7/saved_model.pb": b"x", "7/variables/v": b"x"}
    assert list(folder.parent.iterdir()) == [folder]


def test_what_is_unpacked_already_is_used_again(tmp_path):
    image = Image("models/digits/1/saved_model.pb")
    target = _target(tmp_path, image)
    assert target._unpacked(RELEASE) == target._unpacked(RELEASE)
    assert image.asked == 1


def test_same_digest_under_another_number_gets_a_folder_of_its_own(tmp_path):
    target = _target(tmp_path, Image("models/digits/1/saved_model.pb"))
    other = Release(RELEASE.registry, RELEASE.digest, 8)
    assert {path.name for path in target._unpacked(other).iterdir()} == {"8"}
    assert {path.name for path in target._unpacked(RELEASE).iterdir()} == {"7"}


@pytest.mark.parametrize(
    ("fails", "raised"),
    [(OSError(28, "No space left on device"), ProgramFailed), (IntegrityError("blob x"), IntegrityError)],
)
def test_unpacking_that_fails_leaves_nothing_that_looks_whole(tmp_path, fails, raised):
    target = _target(tmp_path, Image("models/digits/1/saved_model.pb", fails=fails))
    with pytest.raises(raised):
        target._unpacked(RELEASE)
    assert list(target.models.iterdir()) == []


@pytest.mark.parametrize("files", [["models/other/1/a"], ["models/digits/1/a", "models/digits/2/a"], ["a"]])
def test_image_without_exactly_one_version_of_the_model_is_refused(tmp_path, files):
    with pytest.raises(IntegrityError, match="where one was expected"):
        _target(tmp_path, Image(*files))._unpacked(RELEASE)


def test_sweep_keeps_what_is_served_and_on_request_removes_the_rest(tmp_path):
    target = _target(tmp_path, Image("models/digits/1/saved_model.pb"))
    served, unused = (target._unpacked(Release("r", RELEASE.digest, n)) for n in (1, 2))
    (target.models / ".half.1").mkdir()
    known = [Version(1, RELEASE.digest, Process(1, 1), 1, 2, str(served))]
    assert target.sweep(known, everything=False) == []
    assert sorted(target.models.iterdir()) == [served, unused]
    assert target.sweep(known, everything=True) == []
    assert list(target.models.iterdir()) == [served]


def test_processes_are_found_by_the_beginning_of_an_argument(tmp_path):
    for pid, command in (
        ("12", b"python\0--base=/a/b\0"),
        ("13", b"vi\0notes --base=/a/\0"),
        ("14", b""),
        ("self", b"--base=/a/"),
    ):
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "cmdline").write_bytes(command)
    assert strays.find("--base=/a/", tmp_path) == [12]


def test_every_kind_of_target_in_settings_has_an_implementation():
    assert set(TARGETS) == set(Target.__dataclass_fields__["kind"].metadata["choices"])
