"""The headers with which a request goes on to an engine.

To servers elsewhere each Roundhouse adds itself to the request's Via (RFC 9110), by a name that no other has, so that
those who ask each other for a model, or themselves, notice it and do not for ever.
"""

from __future__ import annotations

from collections.abc import Iterable

from app.asgi import Exchange
from app.auth import given_key
from engines.base import CLIENT_HEADER
from models.errors import LoopDetected
from models.manager import Lease

MAX_HOPS = 16  # where something on the way loses our name


def request_headers(
    exchange: Exchange, lease: Lease, passed: Iterable[tuple[bytes, str]], own_name: str
) -> dict[str, str]:
    """Of the client's headers those that `passed` names, in lower case and as they are sent.

    Raises LoopDetected for a request that has been at this Roundhouse, `own_name`, before.
    """
    headers = {"X-Request-Id": exchange.request_id}
    for key, name in passed:
        value = exchange.headers.get(key)
        if value is not None and value.isascii():
            headers[name] = value.decode("ascii")
    if lease.endpoint.ends_with_us:
        headers[CLIENT_HEADER] = client_of(exchange)
    else:
        headers["Via"] = _via(exchange, lease, own_name)
    headers.update(lease.endpoint.headers)
    return headers


def client_of(exchange: Exchange) -> str:
    """The same for requests from one address, with one key and by one program; another after each of our starts."""
    host, _ = exchange.scope.get("client") or ("", 0)
    who = host, given_key(exchange.headers), exchange.headers.get(b"user-agent")
    return f"{hash(who) & 0xFFFF_FFFF_FFFF_FFFF:x}"


def _via(exchange: Exchange, lease: Lease, own_name: str) -> str:
    lines = (value.decode("latin-1") for key, value in exchange.scope["headers"] if key == b"via")
    hops = [hop.strip() for line in lines for hop in line.split(",") if hop.isascii()]
    if len(hops) >= MAX_HOPS or any(own_name in hop.split() for hop in hops):
        raise LoopDetected(
            f"The request for '{lease.spec.id}' goes in a circle: it came from a server that had it from here, and "
            f"would go there again by the engine '{lease.spec.engine}'. Change `models` of that engine, or there.",
            param="model",
        )
    return ", ".join([*hops, f"1.1 {own_name}"])
