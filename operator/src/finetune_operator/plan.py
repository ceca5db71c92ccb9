"""Everything that must exist because of a decision, in the order in which it is made.

`volume` and `fields` can be made beside the status. `fields`, `once`, `cleaning`: made and never changed (ControllerRevisions, Jobs).
`volume`, `arms`, `routers`, `exposure`: made and held as wanted.
`leftovers`: what serves no longer. `nudges`: routers that have not seen their document yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from finetune_operator import kinds, names
from finetune_operator.api.blocks.serving import Autoscaling
from finetune_operator.api.spec import Spec
from finetune_operator.api.status import Revision
from finetune_operator.build import arm, exposure_log, jobs, revision, router, runconfig
from finetune_operator.build import exposure as exposing
from finetune_operator.build import volume as work_volume
from finetune_operator.build.arm import Served
from finetune_operator.build.jobs import Stage
from finetune_operator.build.pods import ANY_GPU, Accelerator, Devices, Images, Manifest, Owner
from finetune_operator.decide import economics, layout
from finetune_operator.decide.attempts import avoided, divisor, folders, numbered
from finetune_operator.decide.draft import ArmWanted, Draft, JobWanted
from finetune_operator.decide.exposure import asked
from finetune_operator.decide.extras import scaled
from finetune_operator.decide.rollout.states import ACTIVE, UNMOVED
from finetune_operator.decide.stages import BASE, evaluation_key, reference
from finetune_operator.errors import SpecError
from finetune_operator.kinds import Kind
from finetune_operator.observed import Observed

Child = tuple[Kind, Manifest]


@dataclass(frozen=True)
class Context:
    """What the builders are given: the snapshot, the decision, and the operator's own values."""

    owner: Owner
    observed: Observed
    draft: Draft
    images: Images
    jwks: Callable[[], Mapping[str, Any]]

    @property
    def spec(self) -> Spec:
        """The user's spec."""
        return self.observed.spec

    def kept(self, name: str) -> Mapping[str, Any]:
        """The fields and resolved defaults of a revision: as kept, or as they will be."""
        fresh = {"fields": dict(self.observed.retrain), "resolved": runconfig.resolve(self.spec)}
        return self.observed.revisions.get(name) or fresh

    def revision(self, name: str) -> Revision:
        """What the status knows of a revision."""
        return next(r for r in self.draft.status.revisions if r.name == name)

    def profile(self) -> Accelerator | None:
        """The spec's accelerator profile; None when the operator has none of that name."""
        return self.observed.profile if self.spec.compute.accelerator else ANY_GPU

    def devices(self) -> Devices:
        """The accelerators of each pod; SpecError when there is no such profile."""
        profile = self.profile()
        if profile is None:
            known = ", ".join(sorted(self.observed.profiles)) or "none"
            raise SpecError(f"spec.compute.accelerator: the operator has no profile {self.spec.compute.accelerator!r}; it has: {known}")
        return Devices(self.spec.compute.gpus_each, profile)


def volume(c: Context) -> Iterator[Child]:
    """The work volume: everything else mounts it."""
    yield kinds.PVC, work_volume.claim(c.owner, c.spec.storage)


def fields(c: Context) -> Iterator[Child]:
    """What the newest revision is: the user's fields and the defaults of the day, once more than a fetch follows from them."""
    newest = c.draft.revision
    name, begun = newest.name, newest.attempts or newest.tries.keys() - {"fetch"}
    if begun and name not in c.observed.revisions:
        kept = c.kept(name)
        yield kinds.CONTROLLER_REVISION, revision.keep_fields(c.owner, name, kept["fields"], kept["resolved"], c.observed.generation)


def once(c: Context) -> Iterator[Child]:
    """Templates and Jobs."""
    for wanted in c.draft.arms:
        if wanted.name not in c.observed.templates:
            template = _template(c, wanted)
            fields = dict(c.observed.redeploy)
            yield (
                kinds.CONTROLLER_REVISION,
                revision.keep_template(
                    c.owner, wanted.name, wanted.revision, fields, template, c.observed.generation, _artifact(c, wanted.revision)
                ),
            )
    for job in c.draft.jobs:
        stage = Stage(job.stage, job.revision, job.number)
        if job.stage == "train":  # before the Job: once that is there, nothing is made for the attempt any more
            yield kinds.SERVICE, jobs.gang_service(c.owner, stage)
        yield kinds.JOB, _job(c, job, stage)


def cleaning(c: Context) -> Iterator[Child]:
    """The Job that removes what retention no longer keeps. Whatever becomes of it, the FineTune is none the worse."""
    listed = c.draft.status.cleaning
    if c.draft.clean and listed:
        stage = Stage(names.CLEAN, c.draft.revision.name, listed.number)
        config = runconfig.clean(c.owner.namespace, c.owner.name, c.owner.uid, stage, listed)
        devices = Devices(c.spec.compute.gpus_each, c.profile() or ANY_GPU)
        yield kinds.JOB, jobs.stage_job(c.owner, c.spec, stage, config, c.images, devices=devices)


def arms(c: Context) -> Iterator[Child]:
    """Model servers."""
    scaling = _scaling(c)
    for wanted in c.draft.arms:
        stored = c.observed.templates.get(wanted.name)
        template = stored["template"] if stored else _template(c, wanted)
        yield kinds.SERVICE, arm.service(c.owner, wanted.name)
        yield kinds.DEPLOYMENT, arm.deployment(c.owner, wanted.name, wanted.revision, template, _replicas(c, wanted.name))
        if scaling and scaled(c.spec):
            yield kinds.HPA, arm.autoscaler(c.owner, wanted.name, scaling, _least(c, wanted.name))
        if _most(c) > 1:
            yield kinds.PDB, arm.disruption_budget(c.owner, wanted.name)


def routers(c: Context) -> Iterator[Child]:
    """What routes the users; not held up by an arm that is refused, for a rollback needs it."""
    if c.draft.routing is not None:
        routing, exposures = c.draft.routing, exposure_log.wanted(c.spec, c.draft.status.rollout)
        yield from router.children(c.owner, c.spec, c.images.router, routing.structure, routing.weight, c.jwks(), exposures)


def exposure(c: Context) -> Iterator[Child]:
    """What lets users outside the cluster call the routers."""
    serving = c.spec.serving
    if c.draft.exposed and serving and serving.expose:
        yield exposing.kind(serving.expose), exposing.child(c.owner, serving, serving.expose)


def unexposed(c: Context, there: Callable[[Kind], Mapping[str, Any]]) -> Iterator[tuple[Kind, str]]:
    """What let users outside call and is not wanted any more; where another way in is asked for, not before that one is there."""
    wanted, name = asked(c.spec) if c.draft.routing is not None else None, names.users_service(c.owner.name)
    if wanted is None or name in there(wanted):
        seen = c.observed.exposures
        yield from ((kind, name) for kind in kinds.EXPOSURES if kind is not wanted and kind.kind in seen and seen[kind.kind].there)


def leftovers(c: Context, there: Callable[[Kind], Mapping[str, Mapping[str, Any]]]) -> Iterator[tuple[Kind, str]]:
    """What is not wanted any more: arms that the routers have let go of, routers without arms, Services of gangs that ended."""
    wanted = {names.arm(c.owner.name, a.name) for a in c.draft.arms}
    kept = {
        kinds.HPA: wanted if scaled(c.spec) else set(),  # first: it would undo what is set by hand
        kinds.DEPLOYMENT: wanted,  # before its Service: an arm that has a Deployment may be wanted again
        kinds.SERVICE: wanted,
        kinds.PDB: wanted if _most(c) > 1 else set(),
    }
    for kind, those in kept.items():
        for name, child in list(there(kind).items()):
            if child["metadata"]["labels"].get(names.ARM) and name not in those:
                yield kind, name
    if c.draft.routing is None:
        name = names.router(c.owner.name)
        yield from ((kind, name) for kind in (kinds.DEPLOYMENT, kinds.CONFIGMAP, kinds.PDB))
        yield kinds.SERVICE, names.users_service(c.owner.name)
    for attempt in c.draft.status.attempts:
        job = names.attempt_job(c.owner.name, attempt.revision, attempt.number)
        if attempt.outcome != "Running" and c.observed.run(job).state not in ("Waiting", "Running", "Ending"):
            yield kinds.SERVICE, job


def nudges(c: Context, pods: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """(pod, version) of routers that serve another document than the one wanted, once for each: their kubelet may take a minute."""
    if c.draft.routing is None:
        return
    version = c.draft.routing.structure.version
    for seen in c.observed.routers:
        pod = pods.get(seen.pod)
        if pod is None or "deletionTimestamp" in pod["metadata"]:  # the volumes of a pod that goes are not synced any more
            continue
        if seen.version not in (None, version) and _annotations(pod).get(names.NUDGE) != version:
            yield seen.pod, version


def _annotations(obj: Mapping[str, Any]) -> Mapping[str, str]:
    return obj["metadata"].get("annotations") or {}


def _scaling(c: Context) -> Autoscaling | None:
    return c.spec.serving.autoscaling if c.spec.serving else None


def _replicas(c: Context, name: str) -> int | None:
    """Pods that the operator gives the arm; None: it has as many as its autoscaler says. A HorizontalPodAutoscaler leaves alone what
    somebody has set to 0. Somebody else's knows nothing of a new arm: up to what the load needs the operator goes itself."""
    scaling, rollout, seen, least = _scaling(c), c.draft.status.rollout, c.observed.arms.get(name), _least(c, name)
    if scaling is None or seen is None:
        return least
    if scaling.autoscaler == "HPA":
        return None if seen.wanted else least
    rolls_out = rollout is not None and rollout.state in ACTIVE and rollout.arm == name
    return least if rolls_out and seen.wanted < least else None


def _least(c: Context, name: str) -> int:
    """Pods that the arm has, or an autoscaled one has at least: while users are moved what the load needed before. The present arm follows
    the load until then."""
    scaling, rollout = _scaling(c), c.draft.status.rollout
    if scaling is None:
        return c.spec.serving.replicas if c.spec.serving else 1
    held = rollout.capacity if rollout and rollout.state in ACTIVE and not (rollout.stable == name and rollout.state in UNMOVED) else None
    return max(scaling.min_replicas, min(held or 0, scaling.max_replicas))


def _most(c: Context) -> int:
    """Pods that an arm may come to have."""
    serving = c.spec.serving
    if serving is None:
        return 1
    return serving.autoscaling.max_replicas if serving.autoscaling else serving.replicas


def _template(c: Context, wanted: ArmWanted) -> Manifest:
    return arm.template(c.owner, c.spec, _served(c, wanted.revision), c.images, c.devices())


def _artifact(c: Context, name: str) -> str | None:
    """Where what training left of that revision lies; None: nothing, of the untouched base model."""
    return None if name == BASE else c.revision(name).artifact


def _served(c: Context, name: str) -> Served:
    """What a server of that revision loads; `base` is the model of the newest revision, untouched. What training all weights left is
    a model of its own."""
    resolved = c.kept(c.draft.revision.name if name == BASE else name)["resolved"]
    lora = resolved["method"].get("lora") or {}
    artifact = _artifact(c, name)
    whole = resolved["method"]["type"] == "Full"
    return Served(
        model=artifact if whole and artifact else resolved["model"]["path"],
        adapter=None if whole else artifact,
        revision=name,
        name=(c.spec.serving.model_name if c.spec.serving else None) or c.owner.name,
        lora_rank=int(lora.get("rank", 16)),
    )


def _job(c: Context, job: JobWanted, stage: Stage) -> Manifest:
    o, d, devices = c.observed, c.draft, c.devices()
    scoring = _scoring(c, job.stage) if job.stage in names.SCORING else None
    attempt = numbered(d.status.attempts, job.revision, job.number) if job.stage == "train" else None
    choice = layout.begun(o, d.revision.estimate, attempt.layout) if attempt else None
    config = runconfig.build(
        o.namespace, o.name, o.uid, c.spec, stage, c.kept(job.revision)["resolved"],
        gpus=devices.count, gpu_memory=devices.profile.memory_bytes, micro_batch_tokens=choice.micro_batch_tokens if choice else None,
        layout=choice.layout.asked if choice else None,
        resume_from=folders(d.status.attempts, job.revision, job.number), scoring=scoring,
        micro_batch_divisor=divisor(d.status.attempts, job.revision, job.number) if job.stage == "train" else 1,
    )  # fmt: skip
    served = None
    if scoring is not None and config["evaluation"]["metrics"] != runconfig.LOSS_ALONE:
        served = _served(c, _scored_revision(c, job.stage))
    avoid = avoided(d.status.attempts) if job.stage == "train" else ()
    return jobs.stage_job(c.owner, c.spec, stage, config, c.images, served=served, devices=devices, avoid=avoid)


def _scored_revision(c: Context, stage: str) -> str:
    return c.draft.revision.name if stage == "evaluate" else reference(c.draft)


def _report(c: Context, against: str) -> runconfig.Config:
    status, revision = c.draft.status, c.draft.revision
    trained = next((a for a in reversed(status.attempts) if a.revision == revision.name and a.outcome == "Succeeded"), None)
    return runconfig.report(c.spec, against, revision, trained, status.cost.currency, economics.page(c.observed, status.cost))


def _scoring(c: Context, stage: str) -> runconfig.Scoring:
    name, key = c.draft.revision.name, evaluation_key(c.observed, c.draft)
    scored, against = _scored_revision(c, stage), reference(c.draft)
    served = _served(c, scored)
    baseline, resolved = c.draft.revision.baseline, c.kept(name)["resolved"]
    ours, skipped = not arm.uses_vllm(c.spec), c.draft.revision.unprobed
    forgetting = runconfig.forgetting(name, resolved["model"]["path"], quantized=ours, skipped=skipped)
    return runconfig.Scoring(
        path=names.evaluation_path(name, "baseline" if stage == "baseline" else "tuned", key),
        served_name=served.name,
        model_path=served.model,
        adapter=served.adapter,
        reference=baseline.path if stage == "evaluate" and baseline else None,
        exclude_trained_on=None if against == BASE else runconfig.data_path(against),
        report=_report(c, against) if stage == "evaluate" else None,
        before=runconfig.before(c.spec, against, resolved["training"]["maxSequenceLength"]) if stage == "baseline" else None,
        forgetting=forgetting if stage == "evaluate" else None,
        fidelity=runconfig.fidelity(name, merged=ours, skipped=skipped) if stage == "evaluate" else None,
        server=asdict(arm.served_by(c.spec, c.devices().profile)),
    )
