"""A run's raw results → the figures, each beside its goal: pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from finetune_operator.settings import Settings

from tests.bench.control_plane.audit import of_the_cluster
from tests.bench.control_plane.cluster import OPERATOR

Result = Mapping[str, Any]
Figures = dict[str, float]


def figures(floor: Result, run: Result) -> Figures:
    """Everything that is printed: of the FineTunes, and with `floor_` before them of the bare Jobs."""
    restart = {
        "restart_writes": _calls(run["restart"], "writes", _is_operator),
        "restart_gap_s": run["gap"]["Job"],
        "restart_stop_s": run["gap"]["stop_seconds"],
        "restart_cpu_s": run["restart"]["cpu"][OPERATOR],
        "restart_steady_s": run["restart"]["steady_seconds"],
        "beside_all_jobs_s": run["beside"]["Job"]["wall"],
        "beside_cpu_ms_per_object": 1000 * run["beside"]["cpu"][OPERATOR] / run["beside"]["objects"],
    }
    own = {**_singles(run), **_common(run), **_operators(run), **_idle(run), **restart, "delete_s": run["delete"]["gone_seconds"]["Pod"]}
    below = {**_singles(floor), **_common(floor), "cpu_ms_per_object": _all_cpu(floor), "delete_s": floor["delete"]["gone_seconds"]["Pod"]}
    return _rounded({"objects": run["objects"], **own, **{f"floor_{key}": value for key, value in below.items()}})


def life_figures(run: Result) -> Figures:
    """Of FineTunes that serve, and that train. What a restart costs for each is what it takes more than one without them."""
    life, few, live, training, count = run["life"], run["few"], run["live"], run["training"], run["objects"]
    writes = _calls(life, "writes", _is_operator)
    return _rounded({
        "live_objects": count,
        "life_writes": writes,
        "life_phases": len(life["phases"]),
        "writes_per_transition": writes / len(life["phases"]),
        "life_cpu_ms": 1000 * life["cpu"][OPERATOR],
        "live_kib_per_object": run["live_cache_kib"],
        "training_kib_per_object": run["training_cache_kib"],
        **_state("live", live, few, count),
        **_state("training", training, live, count),
    })  # fmt: skip


def _state(name: str, with_them: Result, without: Result, count: int) -> Figures:
    restart, before, idle = with_them["restart"], without["restart"], with_them["idle"]
    return {
        f"{name}_peak_rss_mib": restart["peak_mib"][OPERATOR],
        f"{name}_restart_writes": _calls(restart, "writes", _is_operator),
        f"{name}_restart_cpu_s": restart["cpu"][OPERATOR],
        f"{name}_restart_cpu_ms_per_object": 1000 * (restart["cpu"][OPERATOR] - before["cpu"][OPERATOR]) / count,
        f"{name}_idle_writes": _calls(idle, "writes", _is_operator),
        f"{name}_idle_reads": _calls(idle, "reads", _is_operator),
        f"{name}_idle_cpu_percent": 100 * idle["cpu"][OPERATOR] / idle["seconds"],
    }


def idle_figures(run: Result) -> Figures:
    """What is printed when only the cost of settled objects was asked for; its idle CPU has the sweeps in it, one in five minutes."""
    idle, sweeps = run["idle"], run["sweeps"]
    asked = next(calls["calls"] for user, calls in sweeps["calls"].items() if _is_operator(user))
    between = idle["cpu"][OPERATOR] / idle["seconds"]
    sweep = max(0.0, sweeps["cpu"][OPERATOR] - between * sweeps["seconds"]) / asked["list finetunes"]
    cost = {"sweep_cpu_s": sweep, "idle_cpu_percent": 100 * (between + sweep / Settings.sweep_seconds)}
    return _rounded({"objects": run["objects"], **_common(run), **_operators(run), **_idle(run), **cost})


def _singles(run: Result) -> Figures:
    took = run["singles"]["Job"]["seconds"]
    return {"first_child_p50_ms": 1000 * took["p50"], "first_child_p99_ms": 1000 * took["p99"]}


def _common(run: Result) -> Figures:
    burst, objects = run["burst"], run["objects"]
    return {
        "burst_first_child_p50_ms": 1000 * burst["Job"]["seconds"]["p50"],
        "burst_first_child_p99_ms": 1000 * burst["Job"]["seconds"]["p99"],
        "all_jobs_s": burst["Job"]["wall"],
        "all_pods_s": burst["Pod"]["wall"],
        "all_writes_per_object": _calls(burst, "writes", lambda _: True) / objects,
        "others_cores": burst["others_cores"],
    }


def _all_cpu(run: Result) -> float:
    """Milliseconds per object of API server, etcd, controllers and operator."""
    return 1000 * float(sum(run["burst"]["cpu"].values())) / float(run["objects"])


def _operators(run: Result) -> Figures:
    burst, objects = run["burst"], run["objects"]
    phases = [phase for phase in run.values() if isinstance(phase, Mapping) and "peak_mib" in phase]
    return {
        "all_cpu_ms_per_object": _all_cpu(run),
        "cpu_ms_per_object": 1000 * burst["cpu"][OPERATOR] / objects,
        "writes_per_object": _calls(burst, "writes", _is_operator) / objects,
        "status_writes_per_object": _calls(burst, "status_writes", _is_operator) / objects,
        "events_per_object": _calls(burst, "events", _is_operator) / objects,
        "reads_per_object": _calls(burst, "reads", _is_operator) / objects,
        "peak_rss_mib": max(phase["peak_mib"][OPERATOR] for phase in phases),
    }


def _idle(run: Result) -> Figures:
    """Between two sweeps."""
    idle = run["idle"]
    return {
        "idle_writes": _calls(idle, "writes", _is_operator),
        "idle_reads": _calls(idle, "reads", _is_operator),
        "idle_cpu_percent": 100 * idle["cpu"][OPERATOR] / idle["seconds"],
    }


def _is_operator(user: str) -> bool:
    return not of_the_cluster(user)


def _calls(phase: Result, what: str, whose: Callable[[str], bool]) -> float:
    return float(sum(calls[what] for user, calls in phase["calls"].items() if whose(user)))


def _rounded(values: Mapping[str, float]) -> Figures:
    return {key: int(value) if float(value).is_integer() else round(value, 3) for key, value in values.items()}


@dataclass(frozen=True)
class Row:
    """A figure with its goal: at most `goal(objects)`, or so many times the floor of the same run, which a slower machine has too."""

    title: str
    key: str
    goal: Callable[[int], float] | None = None
    times_floor: float = 0.0
    floor: str = ""  # the floor's figure


def _always(value: float) -> Callable[[int], float]:
    return lambda _: value


def _per_1000(value: float) -> Callable[[int], float]:
    return lambda objects: value * objects / 1000


def _from_1000_on(value: float) -> Callable[[int], float]:
    """As much for up to a thousand, and in proportion above."""
    return lambda objects: value * max(1.0, objects / 1000)


def _memory(objects: int) -> float:
    """150 MiB up to 1,000 objects, 300 at 5,000."""
    return 150 + max(0, objects - 1000) * 150 / 4000


ROWS: Final = (
    Row("one object: create to Job, p50 (ms)", "first_child_p50_ms", _always(30), 4, "floor_first_child_p50_ms"),
    Row("one object: create to Job, p99 (ms)", "first_child_p99_ms", floor="floor_first_child_p99_ms"),
    Row("burst: create to Job, p50 (ms)", "burst_first_child_p50_ms", floor="floor_burst_first_child_p50_ms"),
    Row("burst: create to Job, p99 (ms)", "burst_first_child_p99_ms", _per_1000(20_000), floor="floor_burst_first_child_p99_ms"),
    Row("burst: until all Jobs exist (s)", "all_jobs_s", _per_1000(20), 16, "floor_all_jobs_s"),
    Row("burst: until all pods exist (s)", "all_pods_s", floor="floor_all_pods_s"),
    Row("operator's writes per object", "writes_per_object", _always(6)),
    Row("- of them status", "status_writes_per_object"),
    Row("- of them Events", "events_per_object"),
    Row("all writes per object", "all_writes_per_object", _always(12), floor="floor_all_writes_per_object"),
    Row("operator's reads per object", "reads_per_object", _always(0)),
    Row("operator's CPU per object (ms)", "cpu_ms_per_object", _always(10)),
    Row("all CPU per object (ms)", "all_cpu_ms_per_object", _always(45), 3.2, "floor_cpu_ms_per_object"),
    Row("operator's peak RSS (MiB)", "peak_rss_mib", _memory),
    Row("idle: operator's CPU (% of a core)", "idle_cpu_percent", _always(1)),
    Row("idle: a sweep of all objects, CPU (s)", "sweep_cpu_s"),
    Row("idle: operator's writes", "idle_writes", _always(0)),
    Row("idle: operator's reads", "idle_reads", _always(0)),
    Row("restart: operator's writes", "restart_writes", _always(0)),
    Row("restart: operator's CPU (s)", "restart_cpu_s", _from_1000_on(1.5)),
    Row("restart: until it rests (s)", "restart_steady_s"),
    Row("restart: SIGTERM to a new object's Job (s)", "restart_gap_s", _always(3)),
    Row("- of it until the old process ended (s)", "restart_stop_s"),
    Row("a burst of 100 beside them: until all Jobs exist (s)", "beside_all_jobs_s"),
    Row("- operator's CPU per object (ms)", "beside_cpu_ms_per_object"),
    Row("one life, from creation to Live: writes", "life_writes"),
    Row("- per change of phase", "writes_per_transition", _always(8)),
    Row("- operator's CPU (ms)", "life_cpu_ms"),
    Row("live ones: each in the caches (KiB)", "live_kib_per_object", _always(60)),
    Row("- operator's peak RSS (MiB)", "live_peak_rss_mib"),
    Row("- restart: operator's writes", "live_restart_writes", _always(0)),
    Row("- restart: operator's CPU for each (ms)", "live_restart_cpu_ms_per_object"),
    Row("- idle: operator's writes", "live_idle_writes", _always(0)),
    Row("- idle: operator's CPU (% of a core)", "live_idle_cpu_percent", _always(1)),
    Row("as many that train: each in the caches (KiB)", "training_kib_per_object", _always(60)),
    Row("- operator's peak RSS, with the live ones (MiB)", "training_peak_rss_mib"),
    Row("- restart: operator's writes", "training_restart_writes", _always(0)),
    Row("- restart: operator's CPU for each (ms)", "training_restart_cpu_ms_per_object"),
    Row("- idle: operator's writes", "training_idle_writes", _always(0)),
    Row("- idle: operator's CPU (% of a core)", "training_idle_cpu_percent"),
    Row("delete: until all pods are gone (s)", "delete_s", _per_1000(15), floor="floor_delete_s"),
)


def met(row: Row, found: Figures) -> bool | None:
    """Is the goal met? None where there is none."""
    if row.goal is None:
        return None
    floor = found.get(row.floor, 0.0)
    return found[row.key] <= row.goal(int(found.get("objects", 0))) or found[row.key] <= row.times_floor * floor


def missed(found: Figures) -> list[str]:
    """The figures that were found and miss their goals."""
    return [row.key for row in ROWS if row.key in found and met(row, found) is False]


def table(found: Figures) -> str:
    """Every figure that was found, beside the floor's and the goal."""
    lines = [("", "measured", "floor", "ratio", "goal", ""), *(_line(row, found) for row in ROWS if row.key in found)]
    widths = [max(len(line[column]) for line in lines) for column in range(6)]
    return "\n".join(_aligned(line, widths) for line in lines)


def _line(row: Row, found: Figures) -> tuple[str, ...]:
    value, floor = found[row.key], found.get(row.floor)
    goal = f"<= {_shown(row.goal(int(found.get('objects', 0))))}" if row.goal else ""
    goal += f" or {row.times_floor:g} x floor" if row.times_floor and floor else ""
    verdict = {True: "met", False: "MISSED", None: ""}[met(row, found)]
    return row.title, _shown(value), "" if floor is None else _shown(floor), f"{value / floor:.1f}" if floor else "", goal, verdict


def _aligned(line: tuple[str, ...], widths: list[int]) -> str:
    title, *numbers, goal, verdict = line
    middle = "  ".join(number.rjust(width) for number, width in zip(numbers, widths[1:4], strict=True))
    return f"{title.ljust(widths[0])}  {middle}  {goal.ljust(widths[4])}  {verdict}".rstrip()


def _shown(value: float) -> str:
    return f"{value:.0f}" if value >= 100 or float(value).is_integer() else f"{value:.3g}"
