"""The settings: environment `ROUNDHOUSE_*` over `roundhouse.yaml` over defaults."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from app.config_source import (
    CONFIG_NAME,
    ENV_PREFIX,
    ConfigError,
    ConfigFile,
    check_environment,
    explain,
    explain_json,
    read_config_file,
    split_commas,
    without_empty,
)
from app.engine_config import EngineConfig
from engines.base import Declaration
from models.fetching.address import Address, Configured
from models.scheduling.policy import Policy
from models.types import ModelOverrides, Task

__all__ = ["ConfigError", "EngineConfig", "ModelConfig", "Settings", "load_settings"]

KEY_FORM = re.compile(r"[\x21-\x7e]{8,512}")  # what fits a header without quoting, and cannot be guessed in an hour
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveSeconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Names = Annotated[tuple[str, ...], NoDecode]
EngineName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]  # it becomes part of file names


class ModelConfig(BaseModel):
    """One entry under `models:`; whatever is left out is decided by evidence."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    aliases: tuple[str, ...] = ()
    task: Task | None = None
    engine: str | None = None
    engine_args: dict[str, Any] = Field(default_factory=dict)
    pinned: bool = False
    preload: bool = False
    keep_alive_s: Seconds | None = None
    concurrency: Count | None = None
    max_model_len: Count | None = None
    kv_cache_bytes: ByteSize | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False
    priority: int = Field(default=0, ge=-100, le=100)
    sleep: bool = True
    speculative: str | None = None
    """What drafts tokens: `off`, `ngram`, or the id or folder of a draft; left out: what the model brings."""
    source: str | None = None
    """`s3://bucket/prefix` of a LoRA adapter that is not in the models folder; it is fetched into the state folder."""

    @model_validator(mode="before")
    @classmethod
    def _empty_is_default(cls, value: object) -> object:
        return without_empty({} if value is None else value)

    @field_validator("aliases", mode="before")
    @classmethod
    def _split_commas(cls, value: object) -> object:
        return split_commas(value)

    @field_validator("source", mode="after")
    @classmethod
    def _check_source(cls, value: str | None) -> str | None:
        return value and str(Address.parse(value))

    @field_validator("speculative", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: object) -> object:
        return "off" if value is False else value  # as YAML reads a bare `off`

    def overrides(self) -> ModelOverrides:
        values = {name: getattr(self, name) for name in ModelOverrides.__dataclass_fields__}
        values["kv_cache_bytes"] = None if self.kv_cache_bytes is None else int(self.kv_cache_bytes)
        return ModelOverrides(**values)


class Settings(BaseSettings):
    """Everything that can be set. Sizes accept `8GiB`; durations are seconds."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, extra="forbid", frozen=True, env_ignore_empty=True, validate_default=False
    )

    # Where
    models_dir: Path = Path("./models-data")
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    """0 lets the system choose; the log says which."""
    state_dir: Path = Field(default_factory=lambda: Path("~/.cache/roundhouse").expanduser())
    config: Path | None = None
    """The configuration file; without it `roundhouse.yaml` in the models folder, if there is one."""

    # Access
    api_key: SecretStr | None = None
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    api_key_file: Path | None = None
    """One key per line; empty lines and lines that begin with # do not count."""
    allow_anonymous: bool = False
    """Allows to bind other than loopback without a key: something in front must guard it."""
    allowed_hosts: Names = ()
    """Host names, besides the loopback ones, that a request may be addressed to."""
    cors_origins: Names = ()
    """Origins whose web pages may use the API, like `https://chat.example.com`."""

    # Policy
    residency: Literal["auto", "one"] = "auto"
    swap_share: float = Field(default=0.2, gt=0, lt=1)
    max_wait_s: PositiveSeconds = 60.0
    max_queued: Count = 2048
    max_queued_per_model: Count = 1024
    concurrency: Count = 256
    keep_alive_s: Seconds = 0.0
    """Unloads a model that had no request for so long; 0: never."""
    drain_timeout_s: PositiveSeconds = 300.0
    load_timeout_s: PositiveSeconds = 600.0
    stop_grace_s: Seconds = 5.0
    hang_timeout_s: PositiveSeconds = 120.0
    """An engine that has work, and finished no step of it for so long, is ended and started again."""
    wait_timeout_s: PositiveSeconds = 300.0
    """How long a request that does not stream may wait for its model."""
    shutdown_timeout_s: Seconds = 30.0
    """How long running answers may go on after a TERM signal."""
    preload: Names = ()
    default_model: Names = ()
    """For requests that name no model (WebSocket, TEI): the first of these names that serves it."""

    # Memory
    memory_budget_bytes: Annotated[ByteSize, Field(ge=1)] | None = None
    """For all resident models together; left out: 92 % of the GPU, or 70 % of the RAM that is available."""
    retrieval_share: float = Field(default=0.15, ge=0, lt=1)
    """Of the memory, kept for embedding and reranking models, where there are any."""
    sleep_memory_bytes: ByteSize | None = None
    """RAM for the weights of models that sleep; left out: half of what is available beside a GPU, none without."""
    kv_cache_bytes: ByteSize | None = None
    """KV cache of each vLLM engine; left out: by what the model needs."""

    # Discovery
    watch: Literal["events", "poll"] = "events"
    """`poll` for network and bind mounts, which send no events."""
    poll_s: PositiveSeconds = 2.0

    # Logging
    log_format: Literal["text", "json"] = "text"
    log_level: Literal["trace", "debug", "info", "warning", "error"] = "info"
    access_log: bool = True
    """One line per request."""

    # Limits
    max_body_bytes: Annotated[ByteSize, Field(ge=1024)] = ByteSize(64 << 20)
    max_header_bytes: Annotated[ByteSize, Field(ge=1024)] = ByteSize(32 << 10)
    header_timeout_s: PositiveSeconds = 10.0
    """From a connection, or the first byte of a request on it, to the end of its headers."""
    request_read_timeout_s: PositiveSeconds = 30.0
    """For the whole body to arrive."""
    write_timeout_s: PositiveSeconds = 120.0
    """How long a client may take nothing of an answer that is ready for it."""
    connection_idle_s: PositiveSeconds = 75.0
    """How long a client's idle connection stays open."""
    sse_comment_s: PositiveSeconds = 10.0
    """A streaming request that waits for its model gets a comment this often."""
    progress_text: Literal["off", "reasoning", "content"] = "off"
    """Tells streaming chat clients what they wait for in deltas of this kind, too."""
    upstream_connect_timeout_s: PositiveSeconds = 5.0
    upstream_idle_timeout_s: PositiveSeconds = 600.0
    """How long an engine may send nothing while it answers."""

    max_adapter_bytes: Annotated[ByteSize, Field(ge=1024)] = ByteSize(4 << 30)
    """The most that one adapter from S3 storage may have."""

    # Models and engines
    models: dict[str, ModelConfig] = Field(default_factory=dict)
    engines: dict[EngineName, EngineConfig] = Field(default_factory=dict)
    allow_install: bool = False
    """Lets engines that name `requirements` install them on first use, in an environment of their own."""
    install_timeout_s: PositiveSeconds = 1800.0
    """How long that may take."""

    _given: dict[str, Any] = PrivateAttr(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _empty_is_default(cls, value: object) -> object:
        return without_empty(value)

    @field_validator("api_keys", "allowed_hosts", "cors_origins", "preload", "default_model", mode="before")
    @classmethod
    def _split_commas(cls, value: object) -> object:
        return split_commas(value)

    @field_validator("api_key", "api_keys", mode="after")
    @classmethod
    def _check_keys(cls, value: object) -> object:
        for key in value if isinstance(value, tuple) else (value,):
            if isinstance(key, SecretStr):
                check_key(key.get_secret_value())
        return value

    @field_validator("cors_origins", mode="after")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s,]+", origin):
                raise ValueError(f"{origin!r} is no origin; write it like https://chat.example.com, without a path")
        return value

    @field_validator("allowed_hosts", mode="after")
    @classmethod
    def _check_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for host in value:
            if not re.fullmatch(r"[^/\s@]+", host):
                raise ValueError(f"{host!r} is no host name; write it like chat.example.com, without http:// or a path")
        return value

    @field_validator("models_dir", "state_dir", "config", "api_key_file", mode="after")
    @classmethod
    def _expand_user(cls, value: Path | None) -> Path | None:
        return value.expanduser() if value else value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what is given: `load_settings` merges environment and file, `Settings(...)` in tests sees neither."""
        return (init_settings,)

    def keys(self) -> tuple[str, ...]:
        """Every accepted API key. Raises ConfigError where the key file cannot be used."""
        found = [key.get_secret_value() for key in ((self.api_key,) if self.api_key else ()) + self.api_keys]
        if self.api_key_file:
            found += _read_keys(self.api_key_file)
        return tuple(dict.fromkeys(found))

    def given(self) -> dict[str, Any]:
        """What `load_settings` was given over file and environment; for loading them anew."""
        return self._given

    def policy(self, measured_sleep_bytes: int = 0) -> Policy:
        """`measured_sleep_bytes` stands in for a sleep_memory_bytes that is not set."""
        values = {name: getattr(self, name) for name in Policy.__dataclass_fields__}
        given = self.sleep_memory_bytes
        return Policy(**{**values, "sleep_memory_bytes": measured_sleep_bytes if given is None else int(given)})

    def declarations(self) -> dict[str, Declaration]:
        """What is configured of each engine besides its arguments, by name."""
        return {
            name: config.declaration(allow_install=self.allow_install, install_timeout_s=self.install_timeout_s)
            for name, config in self.engines.items()
        }

    def adapter_sources(self) -> dict[str, Configured]:
        """The adapters that are to be fetched, by id."""
        named = {model_id: (config.source, config.overrides()) for model_id, config in self.models.items()}
        return {name: Configured(Address.parse(url), overrides) for name, (url, overrides) in named.items() if url}

    def overrides(self) -> dict[str, ModelOverrides]:
        """What is configured of each model, by id."""
        return {model_id: config.overrides() for model_id, config in self.models.items()}


def check_key(key: str) -> None:
    if not KEY_FORM.fullmatch(key):
        raise ValueError("an API key must be 8 to 512 printable ASCII characters without spaces")


def _read_keys(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The API key file {path} cannot be read: {error}.") from error
    found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not found:
        raise ConfigError(f"The API key file {path} holds no key; write one per line, or unset api_key_file.")
    for number, key in enumerate(found, 1):
        try:
            check_key(key)
        except ValueError as error:
            raise ConfigError(f"{path}: key number {number}: {error}.") from error
    return found


def known_keys() -> dict[str, list[str]]:
    return {
        "": list(Settings.model_fields),
        "models.*": list(ModelConfig.model_fields),
        "engines.*": [field.alias or name for name, field in EngineConfig.model_fields.items()],
    }


def load_settings(overrides: Mapping[str, Any] | None = None) -> Settings:
    """Settings from environment, file and defaults; `overrides` (of the command line) go over all.

    Raises ConfigError with a sentence per fault.
    """
    given = {name: value for name, value in (overrides or {}).items() if value is not None}
    check_environment(Settings.model_fields)
    file: ConfigFile | None = None
    try:
        path = config_path(_Places(**{name: given[name] for name in ("models_dir", "config") if name in given}))
        file = read_config_file(path) if path else None
        settings = Settings(**{**(file.values if file else {}), **EnvSettingsSource(Settings)(), **given})
    except ValidationError as error:
        raise ConfigError(explain(error, file, known_keys(), given)) from None
    except SettingsError as error:
        raise ConfigError(explain_json(error, Settings.model_fields)) from None
    settings.keys()
    settings._given.update(given)
    return settings


class _Places(BaseSettings):
    """The two settings that say where the file is; they cannot stand in it."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="ignore", env_ignore_empty=True)

    models_dir: Path = Path("./models-data")
    config: Path | None = None


def config_path(places: _Places | Settings) -> Path | None:
    """The configuration file in use; None where none was named and none lies in the models folder.

    Raises ConfigError where this user may not look into that folder.
    """
    if places.config:
        return places.config.expanduser()
    folder = places.models_dir.expanduser()
    try:
        return folder / CONFIG_NAME if (folder / CONFIG_NAME).is_file() else None
    except OSError as error:
        raise ConfigError(
            f"The models folder {folder} cannot be read: {error.strerror}. Let user {os.getuid()} read it, as by "
            f"`chmod -R a+rX {folder}`, or set ROUNDHOUSE_MODELS_DIR."
        ) from error
