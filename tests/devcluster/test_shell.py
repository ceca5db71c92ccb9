"""Progress, commands, processes and files: what the node is built from."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from devcluster import procs, prometheus, shell
from devcluster.shell import CommandError, DevclusterError, Progress


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path))
    return tmp_path


def test_progress_says_what_is_left_by_the_last_run_and_forgets_phases_that_had_nothing_to_do(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def go(**seconds: float) -> list[str]:
        progress = Progress("up", {"build": 480.0, "start": 6.0})
        for name, took in seconds.items():
            with progress.phase(name):
                clock[0] += took
        progress.remember()
        return [line.rpartition("; ")[2] for line in capsys.readouterr().err.splitlines()]

    assert go(build=300.0, start=4.0) == ["about 6 s left", "about 0 s left"]
    assert go(build=0.1, start=8.0) == ["about 4 s left", "about 0 s left"]
    assert json.loads((cache / "timings" / "up.json").read_text()) == {"build": 300.0, "start": 8.0}


def test_an_unreadable_record_of_timings_is_none(cache: Path) -> None:
    (cache / "timings").mkdir()
    (cache / "timings" / "up.json").write_text("{")
    Progress("up", {"start": 6.0}).remember()
    assert json.loads((cache / "timings" / "up.json").read_text()) == {}


def test_a_failed_command_shows_the_end_of_what_it_said_and_where_all_of_it_is(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"(?s)ended with 3:\nno such thing"):
        shell.run(["sh", "-c", "echo no such thing >&2; exit 3"])
    with pytest.raises(CommandError, match=r"(?s)ended with 3 \(all of it: .*log\):\nno such thing"):
        shell.run(["sh", "-c", "echo no such thing >&2; exit 3"], log=tmp_path / "log")
    with pytest.raises(DevclusterError, match="the command no-such-command is missing"):
        shell.run(["no-such-command"])


def test_the_second_holder_of_a_lock_waits_for_the_first() -> None:
    take = "from devcluster.shell import lock\nwith lock('a-test-of-ours'): print('taken', flush=True)"
    with shell.lock("a-test-of-ours"):
        second = subprocess.Popen([sys.executable, "-c", take], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert second.stderr is not None
        assert "waiting for another process" in second.stderr.readline()
        assert second.poll() is None
    assert second.communicate()[0] == "taken\n"


def test_a_process_is_known_by_pid_and_start_time(tmp_path: Path) -> None:
    pid_file = tmp_path / "pids" / "sleeper"
    pid = procs.spawn(["sleep", "300"], pid_file=pid_file, log=tmp_path / "log")
    try:
        assert procs.running(pid_file) == pid
        noted = pid_file.read_text()

        # After a restart of the machine, say, the pid may belong to somebody else.
        pid_file.write_text(f"{pid} 12\n")
        assert procs.running(pid_file) is None
        procs.stop(pid_file)
        assert not pid_file.exists()
        assert procs.start_time(pid) is not None

        pid_file.write_text(noted)
    finally:
        procs.stop(pid_file)
    assert procs.start_time(pid) is None
    assert not pid_file.exists()


@pytest.mark.parametrize("text", ["", "x y\n", "1\n", "999999999 1\n"])
def test_a_pid_file_that_says_nothing_is_no_process(tmp_path: Path, text: str) -> None:
    file = tmp_path / "pid"
    file.write_text(text)
    assert procs.running(file) is None
    procs.stop(file)
    assert not file.exists()


def test_prometheus_is_taken_from_the_cache_and_without_apt_says_where_to_put_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(DevclusterError, match=f"put prometheus and promtool into {cache}/tools/prometheus/usr/bin"):
        prometheus.unpacked("promtool")
    (cache / "tools" / "prometheus").mkdir(parents=True)
    assert prometheus.unpacked("promtool") == cache / "tools" / "prometheus" / "usr" / "bin" / "promtool"
