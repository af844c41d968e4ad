"""Who may talk to us: API keys, the bind rule, the Host check against DNS rebinding, the Origin check."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
from collections.abc import Callable, Iterable, Mapping

from app.config_source import ConfigError
from app.errors import Forbidden, Header, Unauthorized

BEARER = b"bearer "
BASIC = b"basic "
ASK_PASSWORD: Header = (b"www-authenticate", b'Basic realm="Roundhouse: any user name, the API key as password"')
LOOPBACK_NAMES = frozenset({"localhost", "localhost.", "::1"})
PREFLIGHT_MAX_AGE_S = 600


class KeyRing:
    """The accepted keys, kept as digests: comparing digests of equal length tells nothing about any key."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple(hashlib.sha256(key.encode()).digest() for key in keys)

    @property
    def open(self) -> bool:
        """Whether no key is asked for."""
        return not self._digests

    def check(self, headers: Mapping[bytes, bytes], *, as_password: bool = False) -> None:
        """Raises Unauthorized unless `Authorization: Bearer` or `x-api-key` holds an accepted key.

        `as_password`: also takes it as the password of HTTP Basic, and makes browsers ask for it.
        """
        if not self._digests:
            return
        given = given_key(headers) or (_password(headers) if as_password else None)
        if not self._accepts(given):
            raise _refusal(given, as_password=as_password)

    def _accepts(self, given: bytes | None) -> bool:
        if given is None:
            return False
        digest = hashlib.sha256(given).digest()
        found = False
        for accepted in self._digests:  # all of them, so that the time does not tell which one matched
            found |= hmac.compare_digest(digest, accepted)
        return found


def _refusal(given: bytes | None, *, as_password: bool) -> Unauthorized:
    error = Unauthorized(
        "No API key given: send `Authorization: Bearer <key>` or `x-api-key: <key>`."
        if given is None
        else "The API key is not accepted here."
    )
    if as_password:
        error.headers = (ASK_PASSWORD,)
    return error


def given_key(headers: Mapping[bytes, bytes]) -> bytes | None:
    value = headers.get(b"authorization")
    if value is not None and value[:7].lower() == BEARER:
        return value[7:].strip()
    return headers.get(b"x-api-key")


def _password(headers: Mapping[bytes, bytes]) -> bytes | None:
    """Only where nothing but reading public descriptions is possible: browsers send it on by themselves afterwards."""
    value = headers.get(b"authorization", b"")
    if value[:6].lower() != BASIC:
        return None
    try:
        return base64.b64decode(value[6:], validate=True).partition(b":")[2]
    except binascii.Error:
        return None


def is_loopback(host: str) -> bool:
    """Whether `host` (a name or an address, without port) can only be this machine."""
    if host.lower() in LOOPBACK_NAMES:
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_bind(host: str, keys: KeyRing, allow_anonymous: bool) -> None:
    """Raises ConfigError where everybody on the network could use the server without a key."""
    if is_loopback(host) or allow_anonymous or not keys.open:
        return
    raise ConfigError(
        f"Refusing to listen on {host} without an API key: everybody who reaches this machine could use it. Set "
        "ROUNDHOUSE_API_KEY (or ROUNDHOUSE_API_KEY_FILE), or listen on 127.0.0.1, or, where something in front guards "
        "it, set ROUNDHOUSE_ALLOW_ANONYMOUS=true."
    )


def split_host(value: bytes) -> str:
    """The name in a Host header, lower case, without port and brackets."""
    host = value.decode("latin-1").strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host


class HostCheck:
    """On loopback only requests addressed to loopback (or to an allowed name) count as meant for us.

    A web page can make its own name resolve to 127.0.0.1 (DNS rebinding); its requests then carry that name as Host.
    """

    def __init__(self, bind_host: str, allowed_hosts: Iterable[str]) -> None:
        self._allowed = {split_host(name.encode()) for name in allowed_hosts}
        self._active = is_loopback(bind_host) or bool(self._allowed)
        self._bind_host = bind_host.lower()
        self._seen: set[bytes] = set()

    def names_us(self, host: bytes) -> bool:
        """Whether `host` can only mean us: no name that somebody else may point here."""
        name = split_host(host)
        return _cannot_be_rebound(name) or name in self._allowed or "*" in self._allowed

    def check(self, host: bytes | None) -> None:
        if not self._active or host is None or host in self._seen:  # without Host: HTTP/1.0, never a browser
            return
        name = split_host(host)
        if not (is_loopback(name) or name == self._bind_host or name in self._allowed or "*" in self._allowed):
            raise Forbidden(
                f"Host {name[:100]!r} is not served here. If it should be, add it to allowed_hosts "
                "(ROUNDHOUSE_ALLOWED_HOSTS)."
            )
        if len(self._seen) < 64:  # a bound: the port may be anything
            self._seen.add(host)


def _cannot_be_rebound(name: str) -> bool:
    """Whether no stranger can have DNS say where `name` is: an address, or a name without a dot, as in a container."""
    if "." not in name.rstrip("."):
        return bool(name)
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class OriginCheck:
    """Web pages of foreign origins change nothing here, and read nothing, unless configured.

    Our own pages' origin is the Host that they were asked from; `names_us` says which Hosts count as ours. Without it
    all do, which is right only where a key is asked for.
    """

    def __init__(self, origins: Iterable[str], names_us: Callable[[bytes], bool] | None = None) -> None:
        self._names_us = names_us
        self._origins = {origin.rstrip("/").lower().encode() for origin in origins}
        self._any = b"*" in self._origins

    def check(self, headers: Mapping[bytes, bytes], method: str) -> None:
        """Raises Forbidden for a request that may change state and comes from a page of a foreign origin."""
        origin = headers.get(b"origin")
        if origin is None or method in ("GET", "HEAD") or self._accepts(origin, headers.get(b"host", b"")):
            return
        raise Forbidden(
            f"Pages of origin {origin.decode('latin-1')[:100]!r} may not use this server. If they should, add it to "
            "cors_origins (ROUNDHOUSE_CORS_ORIGINS)."
        )

    def _accepts(self, origin: bytes, host: bytes) -> bool:
        lower = origin.lower()
        if self._allows(lower):
            return True
        own = lower in (b"http://" + host.lower(), b"https://" + host.lower())
        return own and (self._names_us is None or self._names_us(host))

    def _allows(self, lower: bytes) -> bool:
        return self._any or lower in self._origins

    def headers_for(self, headers: Mapping[bytes, bytes]) -> list[Header]:
        """CORS headers of an answer; none unless the origin is configured."""
        origin = headers.get(b"origin")
        if origin is None or not self._allows(origin.lower()):
            return []
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", b"x-request-id, retry-after"),
            (b"vary", b"Origin"),
        ]

    def preflight(self, headers: Mapping[bytes, bytes]) -> list[Header] | None:
        """The answer's headers to a preflight request of a configured origin, else None."""
        found = self.headers_for(headers)
        if not found or b"access-control-request-method" not in headers:
            return None
        asked = headers.get(b"access-control-request-headers", b"authorization, content-type")
        return [
            *found,
            (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
            (b"access-control-allow-headers", asked),
            (b"access-control-max-age", b"%d" % PREFLIGHT_MAX_AGE_S),
        ]
