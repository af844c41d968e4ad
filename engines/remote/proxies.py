"""The proxy that the environment names for a server elsewhere: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY.

Read here rather than by aiohttp's `trust_env`, which has no ALL_PROXY and no networks in NO_PROXY, sends what ~/.netrc
has for a host, and would ask a proxy for this machine's own servers.
"""

from __future__ import annotations

import ipaddress
import logging
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

log = logging.getLogger(__name__)

SCHEMES = {"grpc": "http", "grpcs": "https"}  # under which the environment has theirs
USABLE, USABLE_BY_GRPC = ("http", "https"), ("http",)


def proxy_for(url: str) -> str | None:
    """The URL of the proxy by which the server at `url` is asked; None: directly. It may hold a password.

    Servers on this machine are always asked directly.
    """
    target, named = urlsplit(url), getproxies_environment()
    proxy = named.get(SCHEMES.get(target.scheme, target.scheme)) or named.get("all")
    if not proxy or _is_near(target.hostname or "", target.netloc, named):
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    host = told(proxy)
    if host is None or urlsplit(proxy).scheme not in (USABLE_BY_GRPC if target.scheme in SCHEMES else USABLE):
        kind = urlsplit(proxy).scheme if host else "an address that is none"
        log.warning("%s is asked directly: its proxy in the environment is %s, and not http://…", target.netloc, kind)
        return None
    log.info("%s is asked through the proxy %s of the environment", target.netloc, host)
    return proxy


def told(proxy: str) -> str | None:
    """Its host and port, for people; None where it names none."""
    try:
        split = urlsplit(proxy)
        return f"{split.hostname}:{split.port}" if split.port else split.hostname
    except ValueError:
        return None


def _is_near(host: str, netloc: str, named: dict[str, str]) -> bool:
    """Whether it is this machine, or one that NO_PROXY names: by its name, a name above it, or its network."""
    if host == "localhost" or host.endswith(".localhost") or proxy_bypass_environment(netloc, named):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified or any(address in network for network in _networks(named))


def _networks(named: dict[str, str]) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    found = []
    for entry in named.get("no", "").split(","):
        try:
            found.append(ipaddress.ip_network(entry.strip(), strict=False))
        except ValueError:  # a name
            continue
    return found
