"""`python -m tests.trainer.transcript`: SmolLM2-135M by the real server, asked by OpenAI's client; writes docs/openai.md."""

from __future__ import annotations

import importlib.util
import platform
import pprint
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import openai

from devcluster import loopback
from tests.trainer import surface
from tests.trainer.hosting import NAME, REVISION

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "openai.md"
HEAD = """# OpenAI's API, as the embedded server has it

Made by `make transcript`, which starts `finetune-trainer serve` and asks it with OpenAI's own client; not edited by hand. A test asks
for each row of the table anew and compares it with this page. What vLLM has beyond this, its own documentation says.

"""
NOTES = """
What a client may rely on:

- Whatever would change an answer and is not supported is refused by its name, other servers' fields too, unless its value asks for
  nothing; so is a field whose name is one of a served field but for a letter or its case. A client's own tag passes, a text, a number, a
  flag or something empty under a name that nobody knows (`rollout.identity` may tell users apart by it); an object or a list is refused.
- `model` is the name that `serving.modelName` gives, or `ft:BASE:ORGANISATION:NAME`, `…:NAME:REVISION`, `…::NAME`. A revision is that one
  alone: while users are moved, the other arm does not have it and answers `NotFoundError`. BASE and ORGANISATION are not compared.
  vLLM knows `serving.modelName` alone, which may be of that form itself.
- `system_fingerprint` is the revision that answered.
- A stop string never shows, not even in part, streamed or not, also where tokens do not end with it.
- Log-probabilities are the model's own, before `temperature` and `top_p`. The token that ends the turn is not among them; one that spells
  the answer's end and a stop string's beginning is. A token that is no whole character is written `\\xe2\\x82`.
  `text_offset` counts from the answer's beginning.
- `usage.completion_tokens` counts the token that ended the turn too, and those of all `n` answers.
- Of `n` answers with a seed, the second is drawn as the next seed draws it, and so on.
- Requests that come together are generated together, a token of each at every step (`--max-concurrency`, 16): a stream does not wait for
  another one's end. A seed draws the same whoever else is there, but for rounding.
- A body has at most 4 MiB and, at its top, 1,000 fields.
- A client that goes away frees its place at the next token. A stream that breaks off ends with an error event, which the client raises as
  `APIError`. On SIGTERM what is under way is finished. 503 (loading, overloaded, stopping) says `Retry-After`, which the client waits for.
"""
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
STEPS: tuple[tuple[str, str], ...] = (
    ("Which models are there?", "client.models.list().data"),
    ("A chat", "client.chat.completions.create(model='bot', messages=QUESTION, temperature=0, max_tokens=32)"),
    ("The same by the name that OpenAI gives to what was tuned", "client.models.retrieve('ft:smollm2:ml:bot:1f2e3d4c')"),
    (
        "A stream, with its usage at the end",
        "list(client.chat.completions.create(model='bot', messages=QUESTION, temperature=0, max_tokens=32, stream=True,"
        " stream_options={'include_usage': True}))",
    ),
    ("A completion", "client.completions.create(model='bot', prompt='SELECT name FROM', temperature=0, max_tokens=12)"),
    (
        "Two stop strings, of which one spans tokens",
        "client.chat.completions.create(model='bot', messages=QUESTION, temperature=0, max_tokens=32, stop=['of Fra', '!'])",
    ),
    (
        "Log-probabilities",
        "client.chat.completions.create(model='bot', messages=QUESTION, temperature=0, max_tokens=4, logprobs=True, top_logprobs=2)"
        ".choices[0].logprobs",
    ),
    (
        "A completion's",
        "client.completions.create(model='bot', prompt='SELECT name FROM', temperature=0, max_tokens=3, logprobs=2).choices[0].logprobs",
    ),
    (
        "One seed, drawn twice",
        "[client.chat.completions.create(model='bot', messages=QUESTION, temperature=1.2, seed=7, max_tokens=16).choices[0].message.content"
        " for _ in range(2)]",
    ),
    ("Two answers", "client.chat.completions.create(model='bot', messages=QUESTION, temperature=1.2, seed=7, max_tokens=16, n=2)"),
    ("Another model", "client.chat.completions.create(model='gpt-4o', messages=QUESTION)"),
    (
        "A prompt that is too long",
        "client.chat.completions.create(model='bot', messages=[{'role': 'user', 'content': '7 ' * 3000}])",
    ),
    ("Tools", "client.chat.completions.create(model='bot', messages=QUESTION, tools=[{'type': 'function', 'function': {'name': 'f'}}])"),
    ("A misspelt field", "client.chat.completions.create(model='bot', messages=QUESTION, extra_body={'temprature': 0})"),
)  # fmt: skip


def transcript(client: openai.OpenAI) -> Iterator[str]:
    """Each step's call and what it gave, as Markdown."""
    for title, call in STEPS:
        yield f"### {title}\n\n```python\n>>> {call}\n{_told(client, call)}\n```\n"


def _told(client: openai.OpenAI, call: str) -> str:
    try:
        found = eval(call, {"client": client, "QUESTION": QUESTION})
    except openai.OpenAIError as error:
        return f"{type(error).__module__}.{type(error).__name__}: {error}"
    if isinstance(found, list) and found and isinstance(found[0], openai.BaseModel) and len(found) > 3:
        return "\n".join(str(_plain(each)) for each in found)
    return pprint.pformat(_plain(found), width=130, sort_dicts=False)


def _plain(found: Any) -> Any:
    if isinstance(found, list):
        return [_plain(each) for each in found]
    return found.model_dump(exclude_none=True) if isinstance(found, openai.BaseModel) else found


@contextmanager
def served(model: Path) -> Iterator[str]:
    """The base address of a server of `model`, ready."""
    (port,) = loopback.free_ports(1)
    options = ["--served-model-name", NAME, "--revision", REVISION, "--max-model-len", "2048", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen([sys.executable, "-m", "finetune_trainer", "serve", "--model", str(model), *options], stdout=sys.stderr)
    try:
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="-", max_retries=0) as client:
            _wait(client, server)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(60)


def _wait(client: openai.OpenAI, server: subprocess.Popen[bytes]) -> None:
    while server.poll() is None:
        try:
            client.models.list()
        except openai.APIError:
            time.sleep(0.2)
        else:
            return
    raise SystemExit(f"the server ended with {server.returncode}")


def _model(folder: Path) -> Path:
    spec = importlib.util.spec_from_file_location("smollm2", ROOT / "trainer-image" / "tools" / "smollm2.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    tool.main(folder, tool.packaged())
    return folder


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        served(_model(Path(folder))) as url,
        openai.OpenAI(base_url=url, api_key="-", max_retries=0) as client,
    ):
        table, steps = surface.table(client), list(transcript(client))
    made = f"## A transcript\n\nSmolLM2-135M-Instruct on a CPU ({platform.machine()}), openai {version('openai')}.\n\n"
    PAGE.write_text(HEAD + table + NOTES + "\n" + made + "\n".join(steps))
    print(PAGE.read_text())


if __name__ == "__main__":
    main()
