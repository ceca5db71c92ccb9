"""`spec.serving.expose`: the way in from outside the cluster."""

from __future__ import annotations

from typing import Annotated, Final, Literal, cast

from pydantic import Field

from finetune_operator.api.fields import LIVE
from finetune_operator.api.rule import Rule
from finetune_operator.api.types import LabelName, Name, SpecModel, Word

Host = Annotated[
    str, Field(max_length=253, pattern=r"^([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\.)*[a-z]([-a-z0-9]{0,61}[a-z0-9])?$")
]  # neither an address nor a wildcard


class Ingress(SpecModel):
    """An Ingress for the users' Service; path /v1 alone."""

    class_name: Annotated[Name, LIVE] = Field(description="IngressClass of the controller.")
    host: Annotated[Host, LIVE] = Field(description="The name that users call, as bot.example.com.")
    tls_secret_name: Annotated[Name | None, LIVE] = Field(
        default=None, description="Secret of type kubernetes.io/tls with which the controller ends TLS; absent: what the controller has."
    )
    annotations: Annotated[dict[Word, Annotated[str, Field(max_length=1024)]] | None, LIVE] = Field(
        default=None,
        max_length=32,
        description="For the controller (timeouts), cert-manager, external-dns: those that the operator's setting lets through.",
    )


class ParentRef(SpecModel):
    """A Gateway, or a listener of it."""

    name: Annotated[Name, LIVE] = Field(description="Of the Gateway.")
    namespace: Annotated[LabelName | None, LIVE] = Field(
        default=None, description="Default: the FineTune's; the Gateway's listener must admit routes from that."
    )
    section_name: Annotated[Name | None, LIVE] = Field(default=None, description="Name of the listener; absent: all that admit it.")


class HttpRoute(SpecModel):
    """An HTTPRoute of the Gateway API for the users' Service; path /v1 alone."""

    parent_refs: list[ParentRef] = Field(min_length=1, max_length=8, description="Gateways that are to take it.")
    hostnames: Annotated[list[Host], LIVE] = Field(min_length=1, max_length=16, description="The names that users call.")

    @property
    def host(self) -> str:
        """The name that status.url says."""
        return self.hostnames[0]


class Expose(SpecModel):
    """Makes the model callable from outside the cluster, once it serves users; by one of both."""

    ingress: Ingress | None = None
    http_route: HttpRoute | None = None
    scheme: Annotated[Literal["http", "https"] | None, LIVE] = Field(
        default=None, description="Of status.url; absent: https with ingress.tlsSecretName, else http."
    )

    @property
    def way(self) -> Ingress | HttpRoute:
        """The one that is named."""
        return self.ingress or cast(HttpRoute, self.http_route)  # a rule has seen to it that one is


RULES: Final = (
    Rule(
        "spec.serving.expose", "",
        "has(self.ingress) != has(self.httpRoute)",
        "name either an ingress or an httpRoute",
        lambda expose: ("ingress" in expose) != ("httpRoute" in expose),
    ),
)  # fmt: skip
