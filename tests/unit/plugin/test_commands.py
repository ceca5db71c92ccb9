"""The plugin's commands against a cluster in memory, and kubectl's words for what goes wrong."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from finetune_operator import names
from kubectl_finetune import __main__ as command
from kubectl_finetune import control, live, report
from kubectl_finetune.kubectl import Kubectl, NotFound, PluginError, Refused, classified

from tests.unit.plugin.cluster import NOW, FakeKubectl, cluster, recorded, rolling

PATH = "/work/revisions/6364d116/evaluations/tuned-c4c8b72f/report.html"
LIKE = {"image": "trainer:1", "tolerations": []}
GPU = {"key": "nvidia.com/gpu", "operator": "Exists"}
JOB = {"metadata": {"name": "bot-6364d116-fetch"}, "spec": {"template": {"spec": {"containers": [{"image": "trainer:1"}]}}}}


def no_wait(_: float) -> None:
    return None


# ---- kubectl


# what kubectl writes → the kind of error, words of its message
SAID: dict[str, tuple[str, type[PluginError], str]] = {
    "no such object": ('Error from server (NotFound): pods "x" not found', NotFound, "not found"),
    "no right": (
        'Error from server (Forbidden): finetunes.finetune.dev "bot" is forbidden: User "eve" cannot patch resource',
        Refused,
        "Ask for the ClusterRole `edit`",
    ),
    "no such kubeconfig": ("error: stat /none: no such file or directory", PluginError, "stat /none: no such file or directory"),
    "no CRD": ('error: the server doesn\'t have a resource type "finetunes"', PluginError, "install the operator's chart"),
    "no cluster": ("E1129 memcache.go\nThe connection to the server was refused", PluginError, "The connection to the server was refused"),
    "nothing": ("", PluginError, "said nothing"),
}


@pytest.mark.parametrize("case", SAID)
def test_what_kubectl_says_becomes_an_error_that_says_what_to_do(case: str) -> None:
    said, kind, words = SAID[case]
    error = classified(said)
    assert type(error) is kind
    assert words in str(error)
    assert not str(error).startswith("error: "), "the plugin says that itself"


def script(text: str, *flags: str) -> Kubectl:
    return Kubectl(flags, (sys.executable, "-c", text))


def test_kubectl_is_called_with_the_users_flags() -> None:
    echo = script("import json, sys; print(json.dumps({'items': [{'said': sys.argv[1:] + [sys.stdin.read()]}]}))", "--namespace=ml")
    assert echo.items("pods", "-l", "a=b")[0]["said"][:-1] == ["get", "pods", "-l", "a=b", "--output=json", "--namespace=ml"]
    with pytest.raises(Refused):
        script("import sys; sys.exit('Error from server (Forbidden): u cannot get resource x')")("get", "x")
    with pytest.raises(PluginError, match=r"did not answer within 0 s"):
        script("import time; time.sleep(5)")("get", "x", seconds=0.05)
    with pytest.raises(PluginError, match="kubectl is not on PATH"):
        Kubectl((), ("/nonexistent/kubectl",))("get", "x")


def test_a_finetune_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(NotFound, match="there is no FineTune bott; there are: bot"):
        cluster(rolling()).finetune("bott")
    with pytest.raises(NotFound, match="there is none in this namespace"):
        cluster().finetune("bot")


# ---- pause, resume, promote, abort


@pytest.mark.parametrize("verb", control.VERBS)
def test_the_running_rollout_is_named_and_the_operators_answer_is_told(verb: str) -> None:
    kubectl = cluster(rolling())
    answer = control.ask(kubectl, "bot", verb, wait=no_wait)
    assert kubectl.finetunes["bot"]["metadata"]["annotations"] == {names.CONTROL: f"{verb}:a1b2c3d4"}
    assert answer == f"rollout a1b2c3d4: {control.MEANING[verb]}"


def test_what_the_operator_ignores_is_an_error() -> None:
    with pytest.raises(PluginError, match="all users are on the new arm already"):
        control.ask(cluster(rolling(state="Baking", weight=100)), "bot", "promote", wait=no_wait)


def test_an_operator_that_does_not_answer_is_not_waited_for_for_ever() -> None:
    waited: list[float] = []
    with pytest.raises(PluginError, match="the operator has not answered within 20 s: is it running"):
        control.ask(cluster(rolling(), answers=False), "bot", "pause", wait=waited.append)
    assert sum(waited) == control.ANSWER_SECONDS


# the FineTune → what is said instead of asking
NOTHING_RUNS: dict[str, tuple[dict[str, Any], str]] = {
    "it trains": (recorded("Training"), "it is Training. A rollout begins once"),
    "it is new": (recorded("new"), "it is Pending. A rollout begins once"),
    "it was promoted": (
        recorded("Live", rollout={"name": "a", "state": "Promoted"}, previousRevision="0ld"),
        "serves all users since the last one, and to go back to revision 0ld revert the spec",
    ),
    "it is live since its first arm": (recorded("Live", rollout={"state": "Promoted"}), "it is Live, revision 6364d116 serves"),
    "it was taken back": (recorded("Rejected-GuardFailed"), "finetune.dev/retry=…` with a new value tries it again"),
    "an older operator began it": (recorded("RollingOut"), "was begun by an older operator"),
}


@pytest.mark.parametrize("case", NOTHING_RUNS)
def test_without_a_rollout_nothing_is_written_and_it_says_what_is_the_case(case: str) -> None:
    finetune, words = NOTHING_RUNS[case]
    kubectl = cluster(finetune)
    with pytest.raises(PluginError, match=words.replace(".", r"\.")):
        control.ask(kubectl, "bot", "promote", wait=no_wait)
    assert all(call[0] == "get" for call in kubectl.calls)


# ---- status


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(kubectl: FakeKubectl, out: io.StringIO, *, watch: bool = False, wait: Any = no_wait) -> str:
    live.show(kubectl, "bot", out, watch=watch, wait=wait, clock=lambda: NOW)
    return out.getvalue()


def test_status_is_plain_text_where_it_is_piped() -> None:
    event = {"type": "Normal", "reason": "Rollout", "message": "step 1", "lastTimestamp": "2026-11-24T22:32:30Z"}
    told = shown(cluster(rolling(), objects={"events": [event]}), io.StringIO())
    assert told.startswith("guard/bot  RollingOut")
    assert told.endswith("30s ago  Rollout: step 1\n")
    assert "\x1b" not in told


def test_who_may_not_read_events_sees_the_rest() -> None:
    refuses = lambda call: Refused("no") if call[1] == "events" else None  # noqa: E731
    assert "guard/bot" in shown(cluster(rolling(), fails=refuses), io.StringIO())


def test_training_is_asked_how_far_it_is() -> None:
    pod = {"metadata": {"name": "bot-a1-0", "annotations": {names.JOB_INDEX: "0"}}, "status": {"phase": "Running"}}
    other = {"metadata": {"name": "bot-a1-1", "annotations": {names.JOB_INDEX: "1"}}, "status": {"phase": "Running"}}
    said = {"stage": "train", "state": "training", "step": 7, "totalSteps": 50, "percent": 14, "loss": "\x1b[2J", "checkpoint": [1]}
    raw = {"/api/v1/namespaces/guard/pods/bot-a1-0:8080/proxy/progress": json.dumps(said)}
    training = recorded("Training", training={"revision": "6364d116", "attempt": 1, "step": 0, "totalSteps": 50, "percent": 0})
    kubectl = cluster(training, objects={"pods": [other, pod]}, raw=raw)
    assert "step 7 of 50" in (told := shown(kubectl, io.StringIO()))
    assert "\x1b" not in told, "a pod runs what users wrote"
    kubectl.raw.update({path: json.dumps({**said, "state": "loading"}) for path in raw})
    assert "step 0 of 50" in shown(kubectl, io.StringIO()), "it knows less than the status"
    refuses = lambda call: Refused("no") if "--raw" in call else None  # noqa: E731
    assert "step 0 of 50" in shown(cluster(training, objects={"pods": [pod]}, fails=refuses), io.StringIO())


def test_a_watch_that_is_piped_tells_each_change_once_and_ends_with_it() -> None:
    away: list[str] = []
    kubectl = cluster(rolling(), fails=lambda _: PluginError("connection refused") if away else None)
    states = iter([rolling(), rolling(weight=50, step=2), "away", recorded("Live")])

    def turn(_: float) -> None:
        state = next(states)
        away[:] = [state] if isinstance(state, str) else []
        if not isinstance(state, str):
            kubectl.finetunes["bot"] = state

    told = shown(kubectl, io.StringIO(), watch=True, wait=turn).splitlines()
    assert [line.split("  ", 1)[1] for line in told] == [
        "RollingOut, 10 % of the users, step 1 of 2",
        "RollingOut, 50 % of the users, step 2 of 2",
        "the cluster cannot be asked: connection refused",
        "Live, revision 6364d116 serves all users at Service bot",
    ]


def test_a_watch_on_a_terminal_redraws_until_it_is_interrupted() -> None:
    turns = iter(range(3))

    def turn(_: float) -> None:
        if next(turns, None) is None:
            raise KeyboardInterrupt

    out = Terminal()
    with pytest.raises(KeyboardInterrupt):
        shown(cluster(recorded("Live")), out, watch=True, wait=turn)
    assert out.getvalue().count(live.HOME) == 4
    assert out.getvalue().count(live.CLEAR) == 1
    assert "\x1b[32mLive\x1b[0m" in out.getvalue()


def test_a_watch_never_writes_more_than_a_small_terminal_has_room_for() -> None:
    lines = ["short", "x" * 81, "\x1b[32m" + "x" * 80 + "\x1b[0m", "", "x" * 200, "last"]
    for height, shown_lines in {24: 6, 10: 6, 9: 5, 8: 4, 6: 4, 3: 1, 2: 1, 1: 0}.items():
        assert list(live.fitting(lines, os.terminal_size((80, height)))) == lines[:shown_lines], height


def test_a_status_of_an_older_spec_does_not_end_a_watch() -> None:
    assert not live.ended(live.look(cluster(recorded("Live-edited")), "bot", NOW, terminal=False))
    assert live.ended(live.look(cluster(recorded("Live")), "bot", NOW, terminal=False))


# ---- report


def options(*given: str) -> Any:
    return command.parser().parse_args(["report", "bot", *given])


def test_a_report_is_read_from_the_volume_by_a_pod_that_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = "<html>ü</html>".encode() * 5000
    kubectl = cluster(recorded("Live"), objects={"jobs": [JOB]}, files={PATH: page})
    assert report.fetch(kubectl, "bot", options()) == "bot-6364d116-evaluation.html"
    assert (tmp_path / "bot-6364d116-evaluation.html").read_bytes() == page
    assert kubectl.pods == {}
    data = cluster(recorded("Live"), objects={"jobs": [JOB]}, files={"/work/data/6364d116/report.html": b"d"})
    assert report.fetch(data, "bot", options("--data", "-o", "data.html")) == "data.html"
    card = cluster(recorded("Live"), objects={"deployments": [JOB]}, files={PATH.replace("report.html", "README.md"): b"c"})
    assert report.fetch(card, "bot", options("--card", "--revision", "6364d116")) == "bot-6364d116-card.md"


def test_the_card_without_results_is_the_artifacts() -> None:
    assert report.where({"name": "r", "artifact": "/work/a/artifact"}, "card") == "/work/a/artifact/README.md"
    with pytest.raises(PluginError, match="revision r has no artifact"):
        report.where({"name": "r"}, "card")


def test_before_there_is_a_tuned_model_the_page_is_that_of_what_it_will_be_compared_with() -> None:
    """Or of what is good enough: nothing is trained then."""
    base = {"name": "r", "baseline": {"path": "/work/b"}}
    assert report.where(base, "evaluation") == "/work/b/report.html"
    assert report.where({**base, "evaluated": {"path": "/work/t"}}, "evaluation") == "/work/t/report.html"


def test_the_reader_may_do_nothing_but_read() -> None:
    finetune = recorded("Live")
    finetune["spec"]["pods"] = {"imagePullSecrets": ["pull"], "nodeSelector": {"disk": "fast"}, "annotations": {"mesh": "off"}}
    pod = report.reader(finetune, PATH, {**LIKE, "tolerations": [GPU]})
    spec, [container] = pod["spec"], pod["spec"]["containers"]
    assert spec["volumes"] == [{"name": "work", "persistentVolumeClaim": {"claimName": "bot-work", "readOnly": True}}]
    assert container["volumeMounts"] == [{"name": "work", "mountPath": "/work", "readOnly": True}]
    assert (spec["automountServiceAccountToken"], spec["restartPolicy"], spec["activeDeadlineSeconds"]) == (False, "Never", 120)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert (spec["imagePullSecrets"], spec["nodeSelector"]) == ([{"name": "pull"}], {"disk": "fast"})
    assert (spec["tolerations"], pod["metadata"]["annotations"]) == ([GPU], {"mesh": "off"}), "as the pods that have the volume"
    assert pod["metadata"]["labels"] == {names.MANAGED_BY: "kubectl-finetune", names.VOLUME: "bot-work"}, "no child of the operator's"
    [term] = spec["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["labelSelector"]["matchLabels"] == {names.VOLUME: "bot-work"}, "it goes where the volume is"
    assert pod["metadata"]["ownerReferences"][0]["uid"] == finetune["metadata"]["uid"]


@pytest.mark.parametrize("name", ["report.html", "with blank; exit 7 $(id) `id` 'quote.html", "-c.html"])
def test_what_the_reader_prints_is_the_file(tmp_path: Path, name: str) -> None:
    content = bytes(range(256)) * 3000
    (tmp_path / name).write_bytes(content)
    argv = report.reader(recorded("Live"), str(tmp_path / name), LIKE)["spec"]["containers"][0]["command"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert report.unpacked(done.stdout) == content
    assert subprocess.run([*argv[:-1], str(tmp_path / "missing")], capture_output=True, check=False).returncode == report.MISSING


def test_what_is_not_there_is_said() -> None:
    there: dict[str, Any] = {"objects": {"jobs": [JOB]}}
    with pytest.raises(PluginError, match=r"is not on the work volume: that revision was made by an older operator"):
        report.fetch(kubectl := cluster(recorded("Live"), **there), "bot", options())
    assert kubectl.pods == {}, "the reader is removed also then"
    with pytest.raises(PluginError, match="revision r is not scored yet; --data shows its data"):
        report.where({"name": "r"}, "evaluation")
    with pytest.raises(PluginError, match="bot has no revision abcd; it knows: 6364d116"):
        report.fetch(cluster(recorded("Live"), **there), "bot", options("--revision", "abcd"))
    with pytest.raises(PluginError, match="bot has no revision yet"):
        report.fetch(cluster(recorded("new"), **there), "bot", options())
    with pytest.raises(PluginError, match="with --image"):
        report.fetch(cluster(recorded("Live")), "bot", options())
    with pytest.raises(PluginError, match="cannot be written: No such file or directory; --output"):
        report.fetch(cluster(recorded("Live"), files={PATH: b"p"}, **there), "bot", options("-o", "/nonexistent/x.html"))


def test_a_log_in_pieces_is_no_page() -> None:
    whole = base64.encodebytes(gzip.compress(b"page" * 1000)).decode()
    for broken in (whole[: len(whole) // 2], whole.replace("A", "!", 1), "", "sh: gzip: not found"):
        with pytest.raises(PluginError, match="is damaged"):
            report.unpacked(broken)


def test_a_reader_that_does_not_start_says_why() -> None:
    waits = {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available"}]}

    class Stuck(FakeKubectl):
        def _pod(self, name: str) -> dict[str, Any]:
            return {**self.pods[name], "status": waits}

    kubectl = Stuck(finetunes={"bot": recorded("Live")})
    with pytest.raises(PluginError, match=r"did not end within 120 s: pod .* cannot be scheduled: 0/1 nodes"):
        report.read(kubectl, recorded("Live"), PATH, LIKE, wait=no_wait)
    assert kubectl.pods == {}


def test_what_was_read_is_not_lost_for_a_reader_that_cannot_be_removed(capsys: pytest.CaptureFixture[str]) -> None:
    fails = lambda call: Refused("no") if call[0] == "delete" else None  # noqa: E731
    kubectl = cluster(recorded("Live"), files={PATH: b"page"}, fails=fails)
    assert report.read(kubectl, recorded("Live"), PATH, LIKE, wait=no_wait) == b"page"
    assert "ends by itself within 120 s: no" in capsys.readouterr().err


def test_a_finetune_that_is_deleted_ends_its_watch_and_one_that_failed_says_so() -> None:
    kubectl = cluster(rolling())
    with pytest.raises(PluginError, match="there is no FineTune bot"):
        live.show(kubectl, "bot", io.StringIO(), watch=True, wait=lambda _: kubectl.finetunes.clear(), clock=lambda: NOW)
    for phase, well in (("Live", True), ("Failed", False), ("Rejected", False)):
        over = recorded("Live")
        over["status"]["phase"] = phase
        assert live.show(cluster(over), "bot", io.StringIO(), watch=True, wait=no_wait, clock=lambda: NOW) is well


# ---- the command line


def test_help_is_everywhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(control.VERBS) < set(command.ABOUT)
    for words, about in (([], ""), *(([name], about) for name, about in command.ABOUT.items())):
        with pytest.raises(SystemExit) as ended:
            command.main([*words, "--help"])
        assert ended.value.code == 0
        told = capsys.readouterr().out
        assert "usage: kubectl finetune" in told
        assert about[1:] in " ".join(told.split())


def test_an_error_is_one_line_and_an_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fake = tmp_path / "kubectl"
    fake.write_text("#!/bin/sh\necho 'Error from server (Forbidden): you cannot patch' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for words in (["status"], ["report"], ["promote"]):
        assert command.main([*words, "bot", "-n", "ml"]) == 1
        told = capsys.readouterr()
        assert told.out == ""
        assert told.err.startswith("error: Error from server (Forbidden): you cannot patch. Ask for")


def test_the_console_script_is_one_that_kubectl_finds() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).resolve().parents[3] / "pyproject.toml").read_text())
    assert project["project"]["scripts"]["kubectl-finetune"] == "kubectl_finetune.__main__:main"
