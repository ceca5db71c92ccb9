"""Envoy's Lua filters: their script is part of the listener, what they are told part of the routes, which swap as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any, Final

_TYPE: Final = "type.googleapis.com/envoy.extensions.filters.http.lua.v3"


def script(name: str) -> str:
    """The text of a script beside this file."""
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def http_filter(name: str, script: str) -> dict[str, Any]:
    """A filter of that name; it runs for routes that have options for it."""
    return {"name": name, "typed_config": {"@type": f"{_TYPE}.Lua", "default_source_code": {"inline_string": script}}}


def options(context: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a filter is told by the routes (its `filterContext`); without a context it does not run."""
    told = {"disabled": True} if context is None else {"filter_context": dict(context)}
    return {"@type": f"{_TYPE}.LuaPerRoute", **told}
