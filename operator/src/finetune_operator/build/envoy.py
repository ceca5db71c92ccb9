"""The words of Envoy's configuration that several documents have in common.

Lua filters: the script is part of the listener, what it is told part of the routes, which swap as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any, Final

from finetune_operator.build.pods import Manifest

CONFIG: Final = "/etc/envoy"  # where the ConfigMap is mounted
ADMIN_PORT: Final = 9901
REQUEST_SECONDS: Final = 600  # the longest answer
RECEIVE_SECONDS: Final = 60  # the longest request
REQUEST_TIMEOUT: Final = f"{REQUEST_SECONDS}s"
TYPE: Final = "type.googleapis.com/envoy"
_LUA: Final = f"{TYPE}.extensions.filters.http.lua.v3"


def file(name: str, directory: Mapping[str, str]) -> Manifest:
    """A document of the ConfigMap as a source, read again when the watched directory changes."""
    return {
        "resource_api_version": "V3",
        "path_config_source": {"path": f"{CONFIG}/{name}", "watched_directory": dict(directory)},
    }


def address(host: str, port: int) -> Manifest:
    """A TCP address."""
    return {"socket_address": {"address": host, "port_value": port}}


def endpoints(name: str, host: str, port: int) -> Manifest:
    """The only host of the cluster `name`."""
    endpoint = {"endpoint": {"address": address(host, port)}}
    return {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]}


def script(name: str) -> str:
    """The text of a script beside this file; without comments and indentation, for every router's ConfigMap or pod has it."""
    lines = (line.strip() for line in resources.files(__package__).joinpath(name).read_text("utf-8").splitlines())
    return "".join(f"{line}\n" for line in lines if line and not line.startswith("--"))


def lua_filter(name: str, script: str) -> dict[str, Any]:
    """A filter of that name; it runs for routes that have options for it."""
    return {"name": name, "typed_config": {"@type": f"{_LUA}.Lua", "default_source_code": {"inline_string": script}}}


def lua_options(context: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a filter is told by the routes (its `filterContext`); without a context it does not run."""
    told = {"disabled": True} if context is None else {"filter_context": dict(context)}
    return {"@type": f"{_LUA}.LuaPerRoute", **told}
