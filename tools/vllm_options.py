#!/usr/bin/env python3
"""Ask vLLM's own argument parser whether it takes what the operator gives it, and record what it says.

    python3 tools/env.py dev python tools/vllm_options.py           ask, and write tests/contract/vllm_options.json
    python3 tools/env.py dev python tools/vllm_options.py --check   ask, and compare with that file
    … --keep                                                        leave vLLM's environment (8 GB) in the cache

The version is the chart's. No GPU is needed: the parser is the image's whole command line, told that it is on a CPU. Ends with 1
if vLLM refuses a list, reads it otherwise than meant, warns of it (deprecation), or if the record is out of date.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from env import CACHE, ROOT, python, say, uv

RECORD = ROOT / "tests" / "contract" / "vllm_options.json"
# A check that lets these through proves nothing.
WRONG = {
    "a misspelt option": ["/m", "--tensor-paralel-size", "1"],
    "an option cut short": ["/m", "--max-lora-ran", "16"],
    "a rank between two": ["/m", "--enable-lora", "--max-lora-rank", "12"],
    "a port that is no number": ["/m", "--port", "http"],
    "an adapter without a path": ["/m", "--enable-lora", "--lora-modules", '{"name": "bot"}'],
    "the deprecated --model": ["--model", "/m"],
    "a name but no model": ["--served-model-name", "bot"],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the record, write nothing")
    parser.add_argument("--keep", action="store_true", help="leave vLLM's environment in the cache")
    given = parser.parse_args()
    version = chart_version()
    folder = CACHE / "venvs" / f"vllm-{version}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "venvs" / "vllm.flock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            ensure(version, folder)
            return verdict(version, folder, given.check)
        finally:
            if not given.keep:
                shutil.rmtree(folder, ignore_errors=True)


def chart_version() -> str:
    """vLLM's version in the image that the chart names."""
    values = (ROOT / "charts" / "finetune-operator" / "values.yaml").read_text()
    found = re.search(r"^\s*vllm:\s*\S+:v(\d[\w.]*)\s*$", values, re.MULTILINE)
    if not found:
        raise SystemExit("the chart's values.yaml names no vLLM image with a version")
    return found[1]


def ensure(version: str, folder: Path) -> None:
    """vLLM's environment, made if there is none: apart, for it has its own torch."""
    if (folder / "COMPLETE").exists():
        return
    say(f"making an environment with vLLM {version} (8 GB, some minutes)")
    tool = str(uv())
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([tool, "venv", "-q", "--python", python(), str(folder)], check=True)
    interpreter = str(folder / "bin" / "python")
    # No cache: uv would keep the same 8 GB there.
    subprocess.run([tool, "pip", "install", "-q", "--no-cache", "--python", interpreter, f"vllm=={version}"], check=True)
    (folder / "COMPLETE").touch()


def verdict(version: str, folder: Path, check: bool) -> int:
    """Ask, say what is wrong, and write or compare the record."""
    from finetune_operator.build.arm import VLLM_RANKS

    from tests.contract.vllm_lists import cases, options

    meant = cases()
    used = sorted({option for case in meant.values() for option in options(case.arguments)})
    answer = ask(folder, {"right": {k: c.arguments for k, c in meant.items()}, "wrong": WRONG, "options": used})
    problems = [f"{key}: {wrong}" for key, case in meant.items() for wrong in differences(case.meant, answer["right"][key])]
    problems += [f"vLLM takes {key}: {WRONG[key]}" for key, heard in answer["wrong"].items() if "refused" not in heard]
    record = answer["record"]
    problems += [f"vLLM has no option {option}" for option in used if option not in record["options"]]
    if record["version"] != version:
        problems.append(f"vLLM says that it is {record['version']}, not {version}")
    ranks = record["options"].get("--max-lora-rank", {}).get("choices")
    if ranks != list(VLLM_RANKS):
        problems.append(f"vLLM's ranks are {ranks}, the operator's {list(VLLM_RANKS)}")
    text = json.dumps(record, indent=2, sort_keys=True) + "\n"
    if check and (not RECORD.exists() or RECORD.read_text() != text):
        problems.append(f"{RECORD.relative_to(ROOT)} is out of date: run this without --check")
    for problem in problems:
        print(f"vllm_options: {problem}", file=sys.stderr)
    if problems:
        return 1
    if not check:
        RECORD.write_text(text)
    print(f"vLLM {version} reads {len(meant)} argument lists as meant and refuses {len(WRONG)} wrong ones; options: {', '.join(used)}")
    return 0


def ask(folder: Path, question: dict[str, Any]) -> Any:
    """Put a question to `answer`, run in vLLM's environment; what vLLM prints stays out of the way unless it fails."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "answer.json"
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        done = subprocess.run(
            [folder / "bin" / "python", Path(__file__).resolve(), "--answer", str(out)],
            input=json.dumps(question), text=True, capture_output=True, cwd=scratch,
            env={**environment, "HOME": scratch, "VLLM_NO_USAGE_STATS": "1", "CUDA_VISIBLE_DEVICES": ""},
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"vLLM's parser could not be asked:\n{done.stdout}{done.stderr}")
        return json.loads(out.read_text())


def differences(meant: dict[str, Any], heard: dict[str, Any]) -> list[str]:
    """Where what vLLM holds is not what was meant."""
    if "refused" in heard:
        return [f"refused: {heard['refused']}"]
    return [f"{k} is {heard.get(k)!r}, not {value!r}" for k, value in meant.items() if heard.get(k) != value]


def answer(out: Path) -> None:
    """In vLLM's environment: what its command line makes of every list, and the record of the options in use."""
    question = json.load(sys.stdin)
    import vllm.platforms
    from vllm.platforms.cpu import CpuPlatform

    vllm.platforms.current_platform = CpuPlatform()
    from vllm import __version__, envs
    from vllm.entrypoints.cli import serve
    from vllm.entrypoints.serve.instrumentator import health
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    # As vllm.entrypoints.cli.main has it: the whole command line, for it treats `serve` apart.
    whole = FlexibleArgumentParser(prog="vllm")
    command = serve.cmd_init()[0]
    parser = command.subparser_init(whole.add_subparsers(dest="subparser"))
    known = parser._option_string_actions
    record = {
        "version": __version__.split("+")[0],
        "positional": [action.dest for action in parser._actions if not action.option_strings],
        "options": {option: kind(known[option]) for option in question["options"] if option in known},
        "health": [route.path for route in health.router.routes],
        "environment": [name for name in ("VLLM_NO_USAGE_STATS",) if name in envs.environment_variables],
    }
    heard = {
        side: {key: parse(whole, command, known, arguments) for key, arguments in question[side].items()} for side in ("right", "wrong")
    }
    out.write_text(json.dumps({"record": record, **heard}))


def kind(action: argparse.Action) -> dict[str, Any]:
    """How many values an option takes, and which."""
    takes = "none" if action.nargs == 0 else "one" if action.nargs is None else "some"
    number = {"number": True} if action.type is int else {}
    choices = {"choices": list(action.choices)} if action.choices else {}
    return {"takes": takes, **number, **choices}


def parse(whole: Any, command: Any, known: dict[str, Any], arguments: list[str]) -> dict[str, Any]:
    """The values that vLLM holds, or why it refuses. A warning counts as a refusal, and so does an option's abbreviation."""
    logger, said = logging.getLogger("vllm"), Collect()
    logger.addHandler(said)
    unknown = [a for a in arguments if a.startswith("--") and a.split("=", 1)[0] not in known]
    try:
        read = whole.parse_args(["serve", *arguments])
        command.validate(read)
    except SystemExit as error:
        return {"refused": f"exit {error.code}; unknown: {unknown}"}
    except (ValueError, TypeError) as error:
        return {"refused": str(error)}
    finally:
        logger.removeHandler(said)
    if said.texts or unknown:
        return {"refused": f"warned: {said.texts}; unknown: {unknown}"}
    adapters = [[module.name, module.path] for module in read.lora_modules or ()]
    plain = {k: v for k, v in vars(read).items() if isinstance(v, (str, int, list, type(None)))}
    return {**plain, "lora_modules": adapters}


class Collect(logging.Handler):
    """Keeps what is logged from warnings up."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--answer"]:
        answer(Path(sys.argv[2]))
    else:
        sys.exit(main())
