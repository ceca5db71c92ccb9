"""One pod of a training gang: the elastic launcher, in this process, with static rendezvous on pod 0.

The launcher's own command line exits 1 whatever its workers' codes were; here each rank leaves an outcome file, and
the pod ends with the code and message of the rank that failed first. Ranks are forked from a launcher that has imported
everything: the imports take longer than many a short run, and so they happen once a pod.
Invariant: a SIGTERM that comes before any rank runs ends the pod at once; later it is the ranks' to answer.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import tempfile
import threading
import time
from importlib import import_module
from pathlib import Path
from types import FrameType

from finetune_trainer import exits, hardware
from finetune_trainer.config import GATHER_SECONDS, ComputeConfig, RunConfig, need
from finetune_trainer.methods import require_supported
from finetune_trainer.train import worker

RANK_VARIABLE = "JOB_COMPLETION_INDEX"


def main(config: RunConfig) -> exits.JsonObject | None:
    """Run this pod's ranks; rank 0's pod returns the result. Raises SystemExit with the class's code otherwise."""
    require_supported(config)
    compute = need(config.compute, "compute")
    with tempfile.TemporaryDirectory(prefix="finetune-") as scratch:
        outcomes = Path(scratch)
        os.environ[worker.OUTCOMES] = scratch
        # What DeepSpeed, which transformers too imports when it saves a model, would find out by searching, at each step.
        os.environ.update(DS_ACCELERATOR="cuda" if compute.gpus_per_node else "cpu", LOCAL_SIZE=str(compute.processes_per_node))
        os.environ["OMP_NUM_THREADS"] = str(compute.threads or max(1, hardware.cpu_limit() // compute.processes_per_node))
        _stop_once(outcomes)
        import_module("finetune_trainer.train.assemble")
        resolve(compute.master_address, GATHER_SECONDS)
        failure = launch(config, compute, outcomes / "logs")
        return conclude(outcomes, failure)


def launch(config: RunConfig, compute: ComputeConfig, logs: Path) -> BaseException | None:
    """Run the elastic agent until its ranks have ended; returns what it raised."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    settings = LaunchConfig(
        min_nodes=compute.nodes,
        max_nodes=compute.nodes,
        nproc_per_node=compute.processes_per_node,
        run_id=f"{config.finetune.revision}-{config.finetune.attempt}",
        rdzv_backend="static",
        rdzv_endpoint=f"{compute.master_address}:{compute.master_port}",
        rdzv_configs={"rank": int(os.environ.get(RANK_VARIABLE, "0")), "timeout": GATHER_SECONDS},
        start_method="fork",
        signals_to_handle="SIGINT",
        max_restarts=0,
        monitor_interval=0.2,
        logs_specs=DefaultLogsSpecs(log_dir=str(logs)),
        shutdown_timeout=max(1, round(compute.grace_seconds - 5)),
    )
    try:
        elastic_launch(settings, worker.main)(config)
    except BaseException as error:
        return error
    return None


def conclude(outcomes: Path, failure: BaseException | None) -> exits.JsonObject | None:
    """Turn the ranks' outcomes into this pod's: the result of rank 0, or SystemExit with the first failure's code."""
    found = [json.loads(path.read_text()) for path in sorted(outcomes.glob("rank-*.json"))]
    failed = sorted((outcome for outcome in found if outcome["code"]), key=lambda outcome: (_is_echo(outcome), outcome["time"]))
    if failed and not (_is_echo(failed[0]) and hardware.killed_for_memory()):
        exits.write_termination(failed[0]["message"])
        raise SystemExit(int(failed[0]["code"]))
    if failure is not None:
        error = explain(failure)
        exits.write_termination({"stage": "train", "error": error.describe(), "folder": None, "step": None, "checkpoint": None})
        raise SystemExit(error.code)
    first = int(os.environ.get(RANK_VARIABLE, "0")) == 0
    return found[0]["message"] if first and found else None


def explain(failure: BaseException) -> exits.TrainerError:
    """What it means that a rank ended without an outcome."""
    name = type(failure).__name__
    if name == "SignalException":
        return exits.Interrupted("Interrupted", "stopped on request before a rank could save")
    if name != "ChildFailedError":
        return exits.classify(failure)
    codes = [item.exitcode for item in failure.failures.values()]  # type: ignore[attr-defined]
    if hardware.killed_for_memory():
        return exits.OutOfMemory("OutOfMemory", "the kernel killed a rank for memory", exits.MORE_MEMORY)
    if any(code == -signal.SIGTERM for code in codes):
        return exits.Interrupted("Interrupted", "stopped on request before a rank could save")
    if any(code < 0 for code in codes):
        return exits.Infrastructure("RankKilled", f"a rank was killed by signal {-min(codes)}", "See the node's log.")
    return exits.TrainerError("RankFailed", f"a rank ended with code {codes}", "See the pod's log.")


def resolve(host: str, limit: float, pause: float = 1.0) -> None:
    """Wait until `host` has an address: rank 0's pod may get its machine later than this one."""
    deadline = time.monotonic() + limit
    while True:
        try:
            socket.getaddrinfo(host, None)
            return
        except socket.gaierror as error:
            if time.monotonic() > deadline:
                reason = f"{host} has no address after {limit:.0f} s: rank 0 has no machine, or the name server does not know it: {error}"
                raise exits.Infrastructure("MasterUnknown", reason, "Look at rank 0's pod, and at the cluster's DNS.") from error
            time.sleep(pause)


def _is_echo(outcome: dict[str, object]) -> bool:
    """Whether an outcome only reports that another rank is gone."""
    message = outcome["message"]
    assert isinstance(message, dict)
    return bool(message["error"]["reason"] == "PeerLost")


def _stop_once(outcomes: Path) -> None:
    """SIGTERM before a rank runs ends the pod; the first one after that stops the ranks, and more of them change nothing:
    torch's own handler would end the launcher while its ranks still save.

    While the gang gathers, the main thread is in native code where handlers do not run: a thread reads the signal.
    """

    def ranks_run() -> bool:
        return any(outcomes.glob("started-*"))

    def handle(number: int, _frame: FrameType | None) -> None:
        if ranks_run():
            from torch.distributed.elastic.multiprocessing.api import SignalException

            signal.signal(number, signal.SIG_IGN)
            raise SignalException("stopped on request", signal.Signals(number))

    def watch() -> None:
        while data := os.read(reader, 64):
            if signal.SIGTERM in data and not ranks_run():
                error = exits.Interrupted("Interrupted", "stopped on request before training began")
                exits.write_termination({"stage": "train", "error": error.describe(), "folder": None, "step": None, "checkpoint": None})
                os._exit(error.code)

    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, handle)
    threading.Thread(target=watch, name="signals", daemon=True).start()
