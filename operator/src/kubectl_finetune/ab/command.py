"""`ab`: where the log, the key and the times come from, and what becomes of a split that was not met."""

from __future__ import annotations

import argparse
import base64
import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, TextIO

from finetune_operator import names
from finetune_operator.build.exposure_log import KEY_BYTES, KEY_ENTRY

from kubectl_finetune.ab import compare, exposures, html, outcomes, view
from kubectl_finetune.ab.compare import Comparison
from kubectl_finetune.ab.exposures import Asked, Seen
from kubectl_finetune.ab.outcomes import Outcomes
from kubectl_finetune.kubectl import Kubectl, NotFound, Object, PluginError
from kubectl_finetune.view import coloured, plain

MISMATCHED: Final = 3  # the exit status where the split was not met
MOST_BYTES: Final = 4 * 1024**3  # of logs that are read through the API server
LATE: Final = timedelta(hours=1)  # a log that begins so long after the experiment may have lost its beginning
Options = argparse.Namespace


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `ab`."""
    parser.add_argument(
        "--log", metavar="FILE", help="the routers' log, as your collector keeps it; - is standard input (default: kubectl logs)"
    )
    parser.add_argument("--outcomes", metavar="FILE", type=Path, help="CSV, or JSON lines (.jsonl), with ids and a metric")
    parser.add_argument("--join", choices=("user", "response"), default="user", help="what its ids are of (default: user)")
    parser.add_argument("--id", metavar="COLUMN", help="the column with the ids (default: what --join says)")
    parser.add_argument("--metric", metavar="COLUMN", help="the column with the metric, if there are several")
    parser.add_argument(
        "--missing", choices=("leave", "zero"), default="leave", help="a user without a row is left out, or has 0 (default: leave)"
    )
    parser.add_argument("--key-file", metavar="FILE", type=Path, help="the key that users were hashed with (default: from its Secret)")
    parser.add_argument("--rollout", metavar="NAME", help="of which rollout (default: the one in the status, or the only one in the log)")
    parser.add_argument(
        "--since", metavar="TIME", type=_moment, help="from this time on, such as 2026-11-01T12:00:00Z (default: the experiment's)"
    )
    parser.add_argument("--until", metavar="TIME", type=_moment, help="up to this time (default: the experiment's)")
    parser.add_argument("--force", action="store_true", help="tell effects though the split was not met, and exit 0")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--html", metavar="FILE", type=Path, help="write a page to hand on, too")


def run(kubectl: Kubectl, name: str, options: Options, out: TextIO) -> int:
    """Print the comparison; the exit status. PluginError when there is nothing to compare."""
    finetune, missing = _finetune(kubectl, name, options)
    asked, window = _asked(finetune, options)
    found = outcomes.load(options.outcomes, options.id or options.join, options.metric) if options.outcomes else None
    if found and options.join == "response":
        asked = Asked(asked.rollout, asked.since, asked.until, frozenset(o.id for o in found.rows))
    seen = _read(kubectl, name, options, asked)
    comparison = compare.compare(seen, found, _join(kubectl, finetune, seen, found, options) if found else None)
    notes = [*([missing] if missing else []), *_notes(seen, window, options)]
    shown = comparison.split_is_met or options.force
    if options.html:
        _written(options.html, html.page(name, comparison, notes, shown=shown))
    if options.json:
        out.write(json.dumps(document(name, comparison, notes), indent=2, default=_plain) + "\n")
    else:
        paint = coloured if out.isatty() else plain
        out.write("\n".join(view.page(name, comparison, notes, paint, shown=shown)) + "\n")
    if shown:
        return 0
    print("error: the split was not met, so effects are not told; --force tells them", file=sys.stderr)
    return MISMATCHED


def document(name: str, comparison: Comparison, notes: Sequence[str]) -> Object:
    """The comparison as JSON. Differences are canary minus stable; shares are 0…1, times milliseconds."""
    return {"name": name, **asdict(comparison), "split_is_met": comparison.split_is_met, "notes": list(notes)}


def _finetune(kubectl: Kubectl, name: str, options: Options) -> tuple[Object, str]:
    """The FineTune; with a log of one's own it may be gone, and then a note says what is not known."""
    try:
        return kubectl.finetune(name), ""
    except PluginError as error:
        if not options.log:
            raise
        why = "it is gone" if isinstance(error, NotFound) else str(error)
        return (
            {},
            f"The FineTune cannot be asked when its split was fixed ({why}): all of the log is taken, or what --since and --until say.",
        )


def _asked(finetune: Object, options: Options) -> tuple[Asked, Object]:
    """What of the log counts, and the status's experiment where that is of this rollout."""
    rollout = (finetune.get("status") or {}).get("rollout") or {}
    if options.rollout and options.rollout != rollout.get("name"):
        return Asked(options.rollout, options.since, options.until), {}
    if not rollout.get("name"):
        if not options.log:
            raise PluginError("it has had no rollout: an A/B test is one with spec.rollout.experiment (docs/ab.md)")
        return Asked("", options.since, options.until), {}
    window = rollout.get("experiment") or {}
    if not window and not options.since:
        doing = f"{rollout.get('state')}, {rollout.get('weight')} % of the users"
        raise PluginError(
            f"the split of rollout {rollout['name']} is not fixed ({doing}): it is once the step of rollout.experiment is reached"
        )
    since, until = (datetime.fromisoformat(window[k]) if window.get(k) else None for k in ("since", "until"))
    return Asked(str(rollout["name"]), options.since or since, options.until or until), dict(window)


def _read(kubectl: Kubectl, name: str, options: Options, asked: Asked) -> Seen:
    with ExitStack() as open_files:
        lines: Iterable[str]
        if options.log == "-":
            lines, source = sys.stdin, "standard input"
        elif options.log:
            try:
                lines = open_files.enter_context(Path(options.log).open(encoding="utf-8", errors="replace"))
            except OSError as error:
                raise PluginError(f"{options.log}: {error.strerror}") from None
            source = options.log
        else:
            selector = f"--selector={names.NAME}={name},{names.COMPONENT}=router"
            since = [f"--since-time={asked.since.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"] if asked.since else []
            lines = kubectl.lines("logs", selector, "--container=envoy", "--tail=-1", *since, most=MOST_BYTES)
            source = "the routers' log"
        return exposures.read(lines, source, asked)


def _written(path: Path, page: str) -> None:
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise PluginError(f"{path}: {error.strerror}") from None


def _join(kubectl: Kubectl, finetune: Object, seen: Seen, found: Outcomes, options: Options) -> compare.Joined:
    if options.join == "response":
        joined = compare.by_response(seen, found)
    else:
        joined = compare.by_user(seen, found, _key(kubectl, finetune, options), zero=options.missing == "zero")
    if not joined.rows:
        hint = "Are they ids of answers as the API gave them (chatcmpl-…)?" if options.join == "response" else (
            "Are they users exactly as requests name them (with Authorization as the identity: `Bearer ` and the key)?"
        )  # fmt: skip
        raise PluginError(f"none of the {joined.unknown} rows of {options.outcomes} is of anybody in the log. {hint}")
    return joined


def _key(kubectl: Kubectl, finetune: Object, options: Options) -> bytes:
    """The key of the users' hashes. It is in a Secret: who may not read that may not find users in the log."""
    key: bytes
    if options.key_file:
        try:
            key = options.key_file.read_bytes().strip()
        except OSError as error:
            raise PluginError(f"{options.key_file}: {error.strerror}") from None
        where = str(options.key_file)
    else:
        log = (((finetune.get("spec") or {}).get("rollout") or {}).get("experiment") or {}).get("log") or {}
        if not log.get("secretName"):
            raise PluginError(
                "its spec has no rollout.experiment.log, whose Secret has the key of the users' hashes: give it by --key-file"
            )
        where = f"Secret {log['secretName']}"
        data: Object = kubectl.read("get", "secret", log["secretName"]).get("data") or {}
        key = base64.b64decode(data.get(KEY_ENTRY, "")).strip()
    if len(key) < KEY_BYTES:
        raise PluginError(
            f"{where} has no entry `{KEY_ENTRY}` of at least {KEY_BYTES} characters: with a shorter one the routers log nothing"
        )
    return key


def _notes(seen: Seen, window: Object, options: Options) -> list[str]:
    notes = []
    if window and not window.get("until") and not options.until:
        notes.append(
            "The test is still running. The intervals are for one look at its planned end: who looks again and again until p is small "
            "will find a difference where there is none."
        )
    since = datetime.fromisoformat(window["since"]) if window.get("since") else None
    if since and not options.since and not options.log and seen.began and seen.began - since > LATE:
        notes.append(
            f"The routers' log begins {seen.began:%Y-%m-%d %H:%M} UTC, the test {since:%Y-%m-%d %H:%M}: nobody called, or what was "
            "logged is gone. A kubelet keeps the newest 10 MiB of a container's log, and none of a pod that is gone; your collector's, "
            "by --log, has all of it."
        )
    return notes


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 2026-11-01T12:00:00Z") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _plain(value: Any) -> str:
    assert isinstance(value, datetime)
    return value.isoformat()
