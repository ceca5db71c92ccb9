"""As much of an API server as kubectl needs to serve the plugin: discovery, FineTunes that can be annotated, Events, and pods that end."""

from __future__ import annotations

import base64
import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from finetune_operator import names
from finetune_operator.api.status import Status
from finetune_operator.decide import control
from finetune_operator.decide.draft import Draft

from tests.unit.operator.helpers import make_observed

Object = dict[str, Any]
RESOURCES = {
    "/api/v1": ("v1", {"pods": "Pod", "events": "Event", "secrets": "Secret"}),
    "/apis/batch/v1": ("batch/v1", {"jobs": "Job"}),
    "/apis/apps/v1": ("apps/v1", {"deployments": "Deployment"}),
    "/apis/finetune.dev/v1alpha1": ("finetune.dev/v1alpha1", {"finetunes": "FineTune"}),
}
KIND = {"group": "", "version": "v1", "kind": "Pod"}
VALIDATES = {"parameters": [{"name": "fieldValidation", "in": "query"}], "x-kubernetes-group-version-kind": KIND}
OPENAPI = {  # the server says that it validates fields itself, so that kubectl need not
    "/openapi/v3": {"paths": {"api/v1": {"serverRelativeURL": "/openapi/v3/api/v1"}}},
    "/openapi/v3/api/v1": {
        "openapi": "3.0.0", "info": {"title": "api", "version": "v1"},
        "paths": {"/api/v1/namespaces/{namespace}/pods/{name}": {"patch": VALIDATES}},
    },
}  # fmt: skip


@dataclass
class Api:
    """What is stored, by path; `requests` are (method, path, query) of what was asked of it. `forbids` is a method, and
    `forbids_path` a path, that nobody may use."""

    objects: dict[str, Object]
    files: dict[str, bytes] = field(default_factory=dict)
    lists: dict[str, list[Object]] = field(default_factory=dict)
    raw: dict[str, Object] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    forbids: str = ""
    forbids_path: str = ""
    requests: list[tuple[str, str, dict[str, list[str]]]] = field(default_factory=list)

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: str) -> tuple[int, Object | str]:
        """The status and the document."""
        if (found := _discovered(path)) is not None:
            return 200, found
        self.requests.append((method, path, query))
        if method == self.forbids or path == self.forbids_path:
            return _refusal(403, "Forbidden", f'finetunes.finetune.dev is forbidden: User "eve" cannot {method.lower()} resource')
        if path in self.logs:
            return 200, self.logs[path]
        if path.endswith("/log"):
            content = self.files[self.objects[path.removesuffix("/log")]["spec"]["containers"][0]["command"][-1]]
            return 200, base64.encodebytes(gzip.compress(content)).decode()
        if path in self.lists:
            collection, name = path.rsplit("/", 3)[0], path.rsplit("/", 1)[-1]
            version, kinds = RESOURCES[collection]
            return 200, {"kind": f"{kinds[name]}List", "apiVersion": version, "metadata": {}, "items": self.lists[path]}
        if path in self.raw:
            return 200, self.raw[path]
        if method == "POST":
            return 201, self._create(path, json.loads(body))
        if path not in self.objects:
            return _refusal(404, "NotFound", f'"{path.rsplit("/", 1)[-1]}" not found')
        if method == "PATCH":
            self._annotate(self.objects[path], json.loads(body))
        return 200, self.objects.pop(path) if method == "DELETE" else self.objects[path]

    def _create(self, path: str, pod: Object) -> Object:
        ended = {"name": "reader", "state": {"terminated": {"exitCode": 0}}}
        self.objects[f"{path}/{pod['metadata']['name']}"] = {**pod, "status": {"phase": "Succeeded", "containerStatuses": [ended]}}
        return pod

    def _annotate(self, finetune: Object, patch: Object) -> None:
        finetune["metadata"].setdefault("annotations", {}).update(patch["metadata"]["annotations"])
        asked = finetune["metadata"]["annotations"][names.CONTROL]
        before = Draft(status=Status.model_validate(finetune["status"]))
        finetune["status"] = control.heard(make_observed(control=asked), before).status.to_dict()


def _refusal(code: int, reason: str, message: str) -> tuple[int, Object]:
    return code, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": message, "code": code}


def _discovered(path: str) -> Object | None:
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        versions = [{"groupVersion": version, "version": version.split("/")[1]} for version, _ in RESOURCES.values() if "/" in version]
        groups = [{"name": v["groupVersion"].split("/")[0], "versions": [v], "preferredVersion": v} for v in versions]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    if path in RESOURCES:
        version, kinds = RESOURCES[path]
        verbs = ["get", "list", "create", "patch", "delete"]
        known = [{"name": n, "singularName": k.lower(), "namespaced": True, "kind": k, "verbs": verbs} for n, k in kinds.items()]
        return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": known}
    return OPENAPI.get(path)


@contextmanager
def serving(api: Api) -> Iterator[str]:
    """Its address while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            parts = urlsplit(self.path)
            code, document = api.answer(self.command, parts.path, parse_qs(parts.query), body)
            data = (document if isinstance(document, str) else json.dumps(document)).encode()
            self.send_response(code)
            self.send_header("Content-Type", "text/plain" if isinstance(document, str) else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PATCH = do_DELETE = _any  # noqa: N815 - http.server's names

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
