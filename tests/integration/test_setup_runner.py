"""scripts/setup-runner on a host whose system programs are stand-ins that remember what they were told.

The script itself, and bash, grep, sed and tar with it, are real; no archive of NVIDIA's, GitLab's or GitHub's is asked.
"""

import hashlib
import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REAL = ("bash", "env", "grep", "sed", "tar", "sha256sum", "dirname", "touch", "cat", "mkdir", "ln")
FAKE = ("apt-get", "apt-cache", "dpkg-query", "docker", "systemctl", "lspci", "nvidia-smi", "id", "useradd", "chown",
        "install", "runuser")  # fmt: skip
INSTALLED_LATER = {"nvidia-container-toolkit": "nvidia-ctk", "gitlab-runner": "gitlab-runner"}
GPU = "01:00.0 3D controller: NVIDIA Corporation GH100 [H100 PCIe] (rev a1)\n"
GITLAB = ("--ci", "gitlab", "--url", "https://gitlab.example/team/digits")
GITHUB = ("--ci", "github", "--url", "https://github.example/team/digits")
_PROGRAM = r"""#!/usr/bin/env bash
cd "$STATE"; name=${0##*/}; changes() { echo "$name $*" >> log; }
case "$name $*" in
  "apt-get update"*) changes "$@" ;;
  "apt-get install"*)
    changes "$@"
    for word in "${@:2}"; do
      touch "packages/$word" 2>/dev/null
      later=$(sed -n "s/^$word=//p" later); [ -z "$later" ] || ln -s program "programs/$later"
    done ;;
  "apt-cache policy"*) grep -qx "$2" offered && echo "  Candidate: 1.0" || echo "  Candidate: (none)" ;;
  dpkg-query*) [ -e "packages/${@: -1}" ] && echo installed ;;
  "docker info --format"*) [ -e engine ] && cat runtimes ;;
  "docker info"*) [ -e engine ] ;;
  systemctl*) changes "$@"; touch engine ;;
  lspci*) cat pci ;;
  nvidia-smi*) [ -e driver ] ;;
  nvidia-ctk*) changes "$@"; echo '{"nvidia":{},"runc":{}}' > runtimes ;;
  "id -u") echo 0 ;;
  id*) [ -e user ] ;;
  useradd*) changes "$@"; touch user ;;
  install*) changes "$@"; mkdir -p "${@: -1}" ;;
  runuser*) changes "$@"; while [ "$1" != -- ]; do shift; done; shift; "$@" ;;
  "gitlab-runner list") cat registered ;;
  "gitlab-runner register"*) changes "$@"; [ "$CI_SERVER_TOKEN" = hunter2 ] && echo "URL=$4" > registered ;;
  *) changes "$@" ;;
esac
"""
_CONFIG = '#!/usr/bin/env bash\n[ "$ACTIONS_RUNNER_INPUT_TOKEN" = hunter2 ] && touch "${0%/*}/.runner"\n'
_SERVICE = "#!/usr/bin/env bash\ntouch .service\n"


class Host:
    """A Debian host with nothing but an apt archive."""

    def __init__(self, folder: Path, offered=(), pci: str = ""):
        self.state = folder
        self.programs = folder / "programs"
        for name in ("programs", "packages"):
            (folder / name).mkdir()
        (self.programs / "program").write_text(_PROGRAM)
        (self.programs / "program").chmod(0o755)
        for name in FAKE:
            (self.programs / name).symlink_to("program")
        for name in REAL:
            (self.programs / name).symlink_to(shutil.which(name))
        (folder / "later").write_text("".join(f"{a}={b}\n" for a, b in INSTALLED_LATER.items()))
        (folder / "offered").write_text("\n".join(offered) + "\n")
        (folder / "runtimes").write_text('{"runc":{}}\n')
        (folder / "registered").write_text("")
        (folder / "os-release").write_text("ID=debian\n")
        (folder / "pci").write_text(pci)

    def __call__(self, *arguments: str, **environment: str) -> tuple[int, str]:
        """Runs the script; its exit status and what it said."""
        clean = {
            "PATH": str(self.programs),
            "STATE": str(self.state),
            "OS_RELEASE": f"{self.state}/os-release",
        }
        clean["RUNNER_HOME"] = str(self.state / "actions-runner")
        argv = [shutil.which("bash"), ROOT / "scripts/setup-runner", *arguments]
        done = subprocess.run(argv, env={**clean, **environment}, capture_output=True, text=True, timeout=60)
        assert "hunter2" not in done.stdout + done.stderr
        return done.returncode, done.stderr

    @property
    def changes(self) -> list[str]:
        log = self.state / "log"
        return log.read_text().splitlines() if log.exists() else []

    def files(self) -> set[str]:
        return {str(path.relative_to(self.state)) for path in self.state.rglob("*")}


@pytest.fixture
def host(tmp_path) -> Host:
    return Host(tmp_path, offered=INSTALLED_LATER, pci=GPU)


def test_a_dry_run_tells_every_step_and_changes_nothing(host):
    (host.state / "driver").touch()
    before = host.files()
    status, said = host("--dry-run", *GITLAB, "--labels", "gpu")
    assert (status, host.changes, host.files()) == (0, [], before)
    for step in (
        "docker.io", "systemctl enable --now docker", "nvidia-container-toolkit", "nvidia-ctk runtime configure",
        "gitlab-runner register --non-interactive --url https://gitlab.example/team/digits", "--docker-gpus all",
    ):  # fmt: skip
        assert step in said


def test_a_fresh_host_becomes_a_gpu_runner_and_the_second_run_does_nothing(host):
    (host.state / "driver").touch()
    status, said = host(*GITLAB, "--labels", "gpu", RUNNER_TOKEN="hunter2")
    assert status == 0, said
    assert not any("hunter2" in line for line in host.changes)
    for package in ("docker.io", "python3-venv", "nvidia-container-toolkit", "gitlab-runner"):
        assert (host.state / "packages" / package).exists()
    assert "scripts/verify-gpu" in said
    done = host.changes
    status, said = host(*GITLAB, "--labels", "gpu")
    assert (status, host.changes) == (0, done)
    assert "Nothing to do: this host is set up." in said


def test_a_github_runner_is_unpacked_only_if_its_hash_is_the_one_named(tmp_path):
    (tmp_path / "host").mkdir()
    host = Host(tmp_path / "host")
    archive = tmp_path / "runner.tar"
    with tarfile.open(archive, "w") as tar:
        for name, text in (("config.sh", _CONFIG), ("svc.sh", _SERVICE)):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text), 0o755
            tar.addfile(entry, io.BytesIO(text.encode()))
    token = {"RUNNER_TOKEN": "hunter2"}
    status, said = host(*GITHUB, **token)
    assert (status, "RUNNER_ARCHIVE=FILE and RUNNER_SHA256" in said) == (5, True)
    named = {**token, "RUNNER_ARCHIVE": str(archive), "RUNNER_SHA256": "0" * 64}
    status, said = host(*GITHUB, **named)
    assert (status, (host.state / "actions-runner/config.sh").exists()) == (6, False)
    named["RUNNER_SHA256"] = hashlib.sha256(archive.read_bytes()).hexdigest()
    status, said = host(*GITHUB, "--labels", "deploy", **named)
    assert status == 0, said
    done = host.changes
    status, said = host(*GITHUB, "--labels", "deploy")
    assert (status, host.changes, "Nothing to do" in said) == (0, done, True)


def test_without_the_archives_it_says_what_to_add_and_a_dry_run_says_it_all_at_once(tmp_path):
    host = Host(tmp_path, pci=GPU)
    status, said = host("--dry-run", *GITLAB)
    assert status == 5
    assert "nvidia-smi does not answer" in said
    assert "Add NVIDIA's, with its key" in said
    assert "Add GitLab's, with its key" in said
    assert "Nothing to do" not in said


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("--ci", "gitlab"), 2, "needs --url"),
        (("--ci", "jenkins", "--url", "https://a"), 2, "gitlab or github"),
        (("--lables", "gpu"), 2, "scripts/setup-runner [--dry-run]"),
        (GITLAB, 2, "RUNNER_TOKEN is empty"),
        (("--labels", "gpu"), 5, "lspci shows no NVIDIA GPU"),
    ],
)
def test_what_cannot_be_done_ends_with_the_next_move(tmp_path, arguments, status, says):
    host = Host(tmp_path, offered=["gitlab-runner"])
    done, said = host(*arguments)
    assert done == status
    assert says in said


def test_a_host_that_is_not_debian_is_left_alone(host):
    (host.state / "os-release").write_text("ID=fedora\n")
    status, said = host()
    assert (status, host.changes) == (5, [])
    assert "This host is not Debian" in said
