"""What the configuration says of engines: arguments, servers elsewhere, code of packages."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from app.config_source import split_commas, without_empty
from engines.base import Declaration

URL_FORMS = {
    "openai": re.compile(r"https?://[^\s/?#@]+(/[^\s?#]*)?"),
    "triton": re.compile(r"(https?|grpcs?)://[^\s/?#@]+/?"),
}
OPENAI_PATH = "/v1"
CHAT_ROUTE = "/chat/completions"
CLASS_FORM = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
VARIABLE_FORM = re.compile(r"[A-Za-z_]\w*")


def _is_usable(url: str) -> bool:
    """Whether a request can be sent there: its port, where it names one, is one."""
    try:
        return url.isascii() and urlsplit(url).port != 0
    except ValueError:
        return False


class EngineConfig(BaseModel):
    """One entry under `engines:`.

    `args` alone are for every model of an engine that is there; `kind` declares servers elsewhere, `class` code of a
    package.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    args: dict[str, Any] = Field(default_factory=dict)

    # Servers elsewhere
    kind: Literal["openai", "triton"] | None = None
    """`openai`: any server that speaks its API (vLLM, SGLang, llama.cpp, Ollama); `triton`: KServe V2."""
    url: str | None = None
    urls: tuple[str, ...] = ()
    """Several servers with the same models: the healthy one with the fewest running requests is asked."""
    api_key_env: str | None = None
    """The environment variable that holds the servers' key."""
    models: dict[str, str] = Field(default_factory=dict)
    """Our id: the servers' name. Left out: all models that they list."""
    prefix: str = ""
    """Goes before the ids of models that they list, like `box/`."""
    breaker_failures: Annotated[int, Field(ge=1)] = 5
    """After so many failures in a row a server is left alone …"""
    breaker_open_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 30.0
    """… for so long; then one request is a trial."""

    # Code of a package
    class_: str | None = Field(default=None, alias="class")
    """`package.module:Class`, imported in a process of its own when one of its models is first needed."""
    path: str | None = None
    """The folder that it is imported from, where it is not installed."""
    requirements: tuple[str, ...] = ()
    """As pip takes them: the engine runs in an environment of its own, made on first use (allow_install)."""
    python: str | None = None
    """The interpreter that runs it, or that its environment is made with; left out: ours."""

    @model_validator(mode="before")
    @classmethod
    def _empty_is_default(cls, value: object) -> object:
        return without_empty({} if value is None else value)

    @field_validator("urls", mode="before")
    @classmethod
    def _split_commas(cls, value: object) -> object:
        return split_commas(value)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind and self.class_:
            raise ValueError("`kind` and `class` exclude each other: a server elsewhere, or code that runs here")
        if self.kind:
            self._check_urls(self.kind)
        elif self.url or self.urls or self.models or self.prefix or self.api_key_env:
            raise ValueError("url, urls, models, prefix and api_key_env need `kind: openai` or `kind: triton`")
        if not self.class_ and (self.path or self.requirements or self.python):
            raise ValueError("path, requirements and python need `class: package.module:Class`")
        return self

    def _check_urls(self, kind: str) -> None:
        given = self._urls()
        if not given or (self.url and self.urls):
            raise ValueError(f"`kind: {kind}` needs `url`, or several `urls`, and not both")
        for url in given:
            if not URL_FORMS[kind].fullmatch(url) or not _is_usable(url):
                example = "http://127.0.0.1:8000/v1" if kind == "openai" else "grpc://127.0.0.1:8001"
                shown = url if "@" not in url else "…@" + url.rpartition("@")[2]  # /health and the log show this text
                raise ValueError(f"{shown!r} is no URL of such a server; write it like {example}, without credentials")
            if url.rstrip("/").endswith(CHAT_ROUTE):
                raise ValueError(f"{url!r} is one route of such a server; leave out {CHAT_ROUTE}")
        if len(set(self._bases())) < len(given):
            raise ValueError("`urls` names a server twice")

    @field_validator("class_", mode="after")
    @classmethod
    def _check_class(cls, value: str | None) -> str | None:
        if value is not None and not CLASS_FORM.fullmatch(value):
            raise ValueError("write it like package.module:Class")
        return value

    @field_validator("path", mode="after")
    @classmethod
    def _check_path(cls, value: str | None) -> str | None:
        if value is not None and not os.path.isabs(value):
            raise ValueError("write the whole path, from / on")
        return value

    @field_validator("requirements", mode="after")
    @classmethod
    def _check_requirements(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any("\n" in requirement or not requirement.strip() for requirement in value):
            raise ValueError("write one requirement to each entry, as pip takes them")
        return value

    @field_validator("api_key_env", mode="after")
    @classmethod
    def _check_variable(cls, value: str | None) -> str | None:
        if value is not None and not VARIABLE_FORM.fullmatch(value):
            raise ValueError("name the environment variable that holds the key, not the key itself")
        return value

    def _urls(self) -> tuple[str, ...]:
        return (self.url,) if self.url else self.urls

    def _bases(self) -> tuple[str, ...]:
        """What stands before the routes: of OpenAI's API, all before `/chat/completions`, as its clients take it.

        A URL that names no path at all, not even `/`, is one of a server whose API is in the usual place.
        """
        implied = OPENAI_PATH if self.kind == "openai" else ""
        return tuple(url.rstrip("/") if urlsplit(url).path else url + implied for url in self._urls())

    def declaration(self, *, allow_install: bool, install_timeout_s: float) -> Declaration:
        return Declaration(
            kind=self.kind,
            urls=self._bases(),
            api_key_env=self.api_key_env,
            models=self.models,
            prefix=self.prefix,
            breaker_failures=self.breaker_failures,
            breaker_open_s=self.breaker_open_s,
            class_path=self.class_,
            path=self.path,
            requirements=self.requirements,
            python=self.python,
            install=allow_install,
            install_timeout_s=install_timeout_s,
        )
