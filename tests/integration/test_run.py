"""The door to other programs: real programs, started, timed out, killed, left running."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from pipeline import run
from pipeline.errors import ProgramFailed


def gone(pid: int, within_s: float = 5.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if run._born(pid) == 0:
            return True
        time.sleep(0.02)
    return False


def test_output_input_and_exit_status_come_back():
    done = run.run(["sh", "-c", "cat; echo err >&2; exit 3"], stdin="hello", timeout_s=10, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "hello", "err\n")


def test_a_failure_shows_the_end_of_what_the_program_said():
    with pytest.raises(ProgramFailed, match=r"sh failed with exit status 4: the reason") as caught:
        run.run(["sh", "-c", "echo the reason >&2; exit 4"], timeout_s=10)
    assert caught.value.exit_code == 5


def test_an_absent_program_is_named_with_a_remedy():
    with pytest.raises(ProgramFailed, match=r"no-such-program is not on PATH. make setup"):
        run.run(["no-such-program"], timeout_s=10)


def test_a_hanging_program_is_stopped_with_all_its_children(tmp_path):
    pids = tmp_path / "pids"
    with pytest.raises(ProgramFailed, match="did not end within"):
        run.run(["sh", "-c", f"sleep 60 & echo $! > {pids}; wait"], timeout_s=0.5)
    assert gone(int(pids.read_text()))


def test_a_program_that_ignores_sigterm_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "_QUIT_GRACE_S", 0.2)
    pids = tmp_path / "pid"
    with pytest.raises(ProgramFailed):
        run.run(["sh", "-c", f"trap '' TERM; echo $$ > {pids}; while :; do sleep 0.05; done"], timeout_s=0.5)
    assert gone(int(pids.read_text()))


def test_a_flood_on_both_pipes_does_not_hang():
    script = "import sys; sys.stdout.write('o' * 3_000_000); sys.stderr.write('e' * 3_000_000)"
    done = run.run([sys.executable, "-c", script], timeout_s=30)
    assert (len(done.stdout), len(done.stderr)) == (3_000_000, 3_000_000)


def test_a_flood_that_memory_should_not_hold_stops_the_program(tmp_path):
    pids = tmp_path / "pid"
    with pytest.raises(run.Flooded, match="sh wrote more than 1 MiB and was stopped"):
        run.run(["sh", "-c", f"echo $$ > {pids}; yes >&2"], timeout_s=30, bytes_at_most=1 << 20)
    assert gone(int(pids.read_text()))


def test_input_that_nobody_reads_and_input_larger_than_a_pipe_both_end():
    text = "line\n" * 200_000
    assert run.run(["true"], stdin=text, timeout_s=10).stdout == ""
    assert run.run(["cat"], stdin=text, timeout_s=30).stdout == text


def test_a_program_that_closed_its_output_and_goes_on_is_late_all_the_same():
    with pytest.raises(run.TimedOut):
        run.run(["sh", "-c", "exec >&- 2>&-; sleep 60"], timeout_s=0.5)


def test_who_is_late_is_told_in_the_words_given():
    with pytest.raises(ProgramFailed, match=r"^scan did not end\.$"):
        run.attend(["sleep", "60"], timeout_s=0.2, late="scan did not end.")


def test_the_locked_environment_comes_before_path():
    assert run.find("python") == str(Path(sys.executable).parent / "python")


def test_a_server_outlives_the_process_that_started_it(tmp_path):
    script = f"""
        from pathlib import Path
        from pipeline import run
        started = run.start(["sh", "-c", "echo begun; sleep 60"], log=Path("{tmp_path}/log"))
        print(started.pid, started.born)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )
    server = run.Process(*map(int, done.stdout.split()))
    assert server.alive()
    assert os.getpgid(server.pid) == server.pid
    server.stop(grace_s=2)
    assert gone(server.pid)
    assert (tmp_path / "log").read_text() == "begun\n"


def test_a_process_id_that_was_used_again_is_not_taken_for_the_old_process():
    assert run.Process(os.getpid(), run._born(os.getpid())).alive()
    assert not run.Process(os.getpid(), 1).alive()


def _person_started(script: str) -> subprocess.Popen:
    """A Python program that hears Ctrl-C: a shell that runs the tests in the background has them ignore it."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize(("first", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stage_that_is_stopped_may_finish_though_sigterm_comes_again(tmp_path, first, status):
    saved, ready, waits = tmp_path / "saved", tmp_path / "ready", tmp_path / "waits"
    trap = (
        f"trap 'sleep 0.5; echo saved > {saved}; exit 5' TERM; echo > {ready}; while :; do sleep 0.05; done"
    )
    script = f"""
        import subprocess, sys
        from pathlib import Path
        from pipeline import __main__ as command, run
        command.stop_in_good_order()
        wait = subprocess.Popen.wait
        def noted_wait(*arguments, **named):
            Path({str(waits)!r}).touch()
            return wait(*arguments, **named)
        subprocess.Popen.wait = noted_wait
        command.commands.run = lambda *_: run.attend(["sh", "-c", {trap!r}], timeout_s=60, grace_s=50)
        sys.exit(command.main(["run", "train"]))
    """
    parent = _person_started(script)
    while not (ready.exists() and waits.exists()):
        time.sleep(0.02)
    for sign in (first, signal.SIGTERM, signal.SIGTERM):
        parent.send_signal(sign)
        time.sleep(0.05)
    assert parent.wait(60) == status
    assert saved.read_text() == "saved\n"


def test_ctrl_c_ends_an_attended_program_and_what_it_started(tmp_path):
    pids = tmp_path / "pids"
    script = f"""
        from pipeline import run
        run.attend(["sh", "-c", "sleep 60 & echo $! $$ > {pids}; wait"], timeout_s=60)
    """
    parent = _person_started(script)
    while not (pids.exists() and pids.read_text().endswith("\n")):
        time.sleep(0.02)
    parent.send_signal(signal.SIGINT)
    assert parent.wait(10) != 0
    assert all(gone(int(pid)) for pid in pids.read_text().split())


def test_a_stage_that_is_told_to_stop_within_a_finalizer_stops_without_a_word():
    script = """
        import os, signal, time
        from pipeline import child
        child._end_with(os.getppid())
        class Resource:
            def __del__(self):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01)
        try:
            Resource()
            time.sleep(60)
        finally:
            print("put in order")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=50
    )
    assert (done.returncode, done.stdout, done.stderr) == (143, "put in order\n", "")
