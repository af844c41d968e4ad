"""Who may open a WebSocket, what malformed or greedy clients get, and that nobody else is held up by them."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import pytest

from app.websocket import connection, endpoint, transport
from tests.app.serving import Served, serving
from tests.app.websocket_client import WAIT_S, Client, connected, delta, refusal, saying, until_idle
from utils.logging import logger

KEY = "long-enough"
MODEL = {"model": "other"}
TEXT, CONTINUED, BINARY, PING, CLOSE = 1, 0, 2, 9, 8
FINAL = 0x80


def frame(payload: bytes, kind: int = TEXT, *, final: bool = True, length: int | None = None) -> bytes:
    """A client's frame; its mask changes nothing. `length`: claimed."""
    size = len(payload) if length is None else length
    head = struct.pack("!BBQ", kind | FINAL * final, FINAL | 127, size) if size > 125 else b""
    return (head or bytes((kind | FINAL * final, FINAL | size))) + bytes(4) + payload


class Raw:
    """A client that sends bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def close_code(self) -> int:
        """That of the close frame, with which everything ends."""
        async with asyncio.timeout(WAIT_S):
            while True:
                kind, size = await self.reader.readexactly(2)
                payload = await self.reader.readexactly(size)  # of what is sent here none is longer than 125
                if kind == CLOSE | FINAL:
                    assert await self.reader.read() == b""
                    return int(struct.unpack("!H", payload[:2])[0])


HANDSHAKE = "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{more}\r\n"
GOOD = f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {base64.b64encode(bytes(16)).decode()}\r\n"


@asynccontextmanager
async def raw(served: Served, more: str = GOOD, *, status: int = 101, rest: bytes = b"") -> AsyncIterator[Raw]:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    try:
        writer.write(HANDSHAKE.format(path="/ws", more=more).encode() + rest)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), WAIT_S)
        assert int(head.split()[1]) == status
        yield Raw(reader, writer)
    finally:
        writer.close()


SESSION = {"session_id": "s", "messages": [{}]}
MALFORMED = [
    ("", "invalid_request", None, "no message"),
    ("{", "invalid_request", None, "message is not valid JSON"),
    ("[" * 2000, "invalid_request", None, "message is not valid JSON"),
    ("[1]", "invalid_request", None, "must be a JSON object, not an array"),
    ({}, "invalid_request", None, "`type` is missing"),
    ({"type": "nix", "session_id": "s"}, "invalid_request", "s", "auth, load_adapter, generate, cancel, ping"),
    ({"type": ["ping"]}, "invalid_request", None, "`type` cannot be"),
    ({"type": "generate", "session_id": "s"}, "invalid_request", "s", "`messages` is missing"),
    ({"type": "generate", "messages": [{}]}, "invalid_request", None, "`session_id` is missing"),
    ({"type": "generate", **SESSION, "session_id": 5}, "invalid_request", None, "`session_id`: should be"),
    ({"type": "generate", **SESSION, "session_id": ""}, "invalid_request", "", "`session_id`"),
    ({"type": "generate", **SESSION, "messages": []}, "invalid_request", "s", "`messages`: List should have"),
    ({"type": "generate", **SESSION, "messages": ["x"]}, "invalid_request", "s", "`messages.0`: should be"),
    ({"type": "generate", **dict.fromkeys(map(str, range(100)))}, "invalid_request", None, "more than 64 fields"),
    ({"type": "generate", **SESSION, "top_k": "5"}, "invalid_request", "s", "`top_k`: should be"),
    ({"type": "generate", **SESSION, "max_tokens": True}, "invalid_request", "s", "`max_tokens`: should be"),
    ({"type": "generate", **SESSION, "max_token": 5}, "invalid_request", "s", "`max_token` is not known"),
    ({"type": "generate", **SESSION, "messages": [{"a": "DEEP"}], **MODEL}, "invalid_request", "s", "cannot be passed"),
    ({"type": "load_adapter"}, "invalid_request", None, "`adapter_path` is missing"),
    ({"type": "load_adapter", "adapter_path": 5}, "invalid_request", None, "`adapter_path`: should be"),
    ({"type": "load_adapter", "adapter_path": "/etc"}, "adapter_path_refused", None, "allowed roots"),
    ({"type": "load_adapter", "adapter_path": "other"}, "wrong_model_task", None, "not a LoRA adapter"),
    ({"type": "cancel"}, "invalid_request", None, "`session_id` is missing"),
    ({"type": "cancel", "session_id": "s"}, "session_not_found", "s", "No session 's'"),
]


async def test_malformed_messages_are_refused_with_the_field_and_the_connection_goes_on(served: Served) -> None:
    async with connected(served) as client:
        for message, *expected in MALFORMED:
            text = message if isinstance(message, str) else json.dumps(message)
            await client.socket.send_str(text.replace('"DEEP"', "[" * 500 + "]" * 500))
            code, session_id, why = await client.error()
            assert [code, session_id] == expected[:2], message
            assert str(expected[2]) in why
        await client.generate("s", messages=[1] * 1000)
        assert "`messages.1`" not in (await client.error())[2]  # looking for every fault would take long
        await client.socket.send_bytes(b'{"type":"ping"}')
        assert "Binary" in (await client.error())[2]
        await client.send("ping", at=5)
        assert await client.next() == {"type": "pong"}
    assert served.engines.seen == []


NO_MESSAGES = [
    (frame(b"", length=5000), 1009),
    (frame(b"x" * 1500, final=False) + frame(b"x" * 600, CONTINUED), 1009),
    (frame(b"\xff"), 1007),
    (frame(b"", 5), 1002),
    (frame(b"x", CONTINUED), 1002),
    (b"\x81\x01x", 1002),  # not masked
    (frame(b"{", final=False), 1008),  # it never ends
]


async def test_what_is_no_message_ends_its_connection_and_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(transport, "LINGER_S", 0.05)
    async with serving(max_body_bytes=2048, request_read_timeout_s=0.2) as served, connected(served) as other:
        for sent, code in NO_MESSAGES:
            async with raw(served) as client:
                client.writer.write(sent)
                assert await client.close_code() == code
        await other.send("ping")
        assert await other.next() == {"type": "pong"}
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_ping_that_comes_in_parts_is_no_message_that_does_not_arrive() -> None:
    async with serving(request_read_timeout_s=0.4) as served, raw(served) as client:
        ping = frame(b"abc", PING)
        for part in (ping[:3], ping[3:]):
            client.writer.write(part)
            await served.client.get("/health/live")  # the part before has been read
        assert await client.reader.readexactly(5) == bytes((PING + 1 | FINAL, 3)) + b"abc"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.reader.read(1), 0.5)


@contextmanager
def no_faults_logged() -> Iterator[None]:
    """What clients do wrong is no error of ours."""
    faults: list[str] = []
    sink = logger.add(faults.append, level="ERROR")
    try:
        yield
    finally:
        logger.remove(sink)
    assert faults == []


async def test_a_connection_that_is_refused_in_the_middle_of_an_answer_is_no_fault_of_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transport, "LINGER_S", 0.05)
    with no_faults_logged():
        async with serving(max_body_bytes=4096) as served:
            for _ in range(3):
                async with connected(served) as client:
                    await client.generate("s", {"stream": [delta(content="x")], "times": 20_000}, **MODEL)
                    await client.next()
                    await client.socket.send_str("x" * 5000)
                    with suppress(EOFError):
                        while True:
                            await client.next()
            await until_idle(served)


async def test_a_client_that_still_sends_a_message_that_is_too_large_gets_to_read_so() -> None:
    async with serving(max_body_bytes=1 << 20) as served, connected(served) as client:
        with suppress(ConnectionError):
            await client.socket.send_str("x" * (16 << 20))
        with pytest.raises(EOFError):
            await client.next()
        assert client.socket.close_code == 1009


async def test_unfinished_messages_are_bounded_together_and_fragments_do_not_count_more() -> None:
    async with serving(max_body_bytes=1024) as served, connected(served) as other:
        clients = []
        try:
            for _ in range(8):
                clients.append(held := raw(served))
                client = await held.__aenter__()
                client.writer.write(frame(b" ", final=False) + frame(b" ", CONTINUED, final=False) * 900)
                client.writer.write(frame(b"", PING))
                assert await asyncio.wait_for(client.reader.readexactly(2), WAIT_S) == bytes((PING + 1 | FINAL, 0))
            async with raw(served) as refused:
                refused.writer.write(frame(b" " * 1000, final=False))
                assert await refused.close_code() == 1013
            client.writer.write(frame(b'{"type":"ping"}', CONTINUED))
            assert await asyncio.wait_for(client.reader.readexactly(17), WAIT_S) == b'\x81\x0f{"type":"pong"}'
        finally:
            for held in clients:
                await held.__aexit__(None, None, None)
        await other.send("ping")
        assert await other.next() == {"type": "pong"}


async def test_a_malformed_handshake_is_refused_at_once(served: Served) -> None:
    for more, status, rest in (
        ("", 400, b""),
        (GOOD.replace("13", "8"), 400, b""),
        (GOOD + f"Cookie: {'x' * 9000}\r\n", 400, b""),
        (GOOD + f"Cookie: {'x' * 40000}\r\n", 431, b""),
        (GOOD, 400, frame(b"{}")),
    ):
        async with raw(served, more, status=status, rest=rest) as client:
            await asyncio.wait_for(client.reader.read(), WAIT_S)


async def test_a_websocket_is_opened_at_its_address_by_those_who_may(served: Served) -> None:
    assert await refusal(served, "/v1/chat/completions") == 404
    assert await refusal(served, headers={"Origin": "https://evil.example"}) == 403
    assert await refusal(served, headers={"Host": "evil.example"}) == 403
    own = f"http://localhost:{served.port}"
    async with connected(served, headers={"Origin": own, "Host": own.removeprefix("http://")}) as client:
        await client.send("ping")
        assert await client.next() == {"type": "pong"}
    plain = await served.client.get("/ws")
    assert (plain.status_code, plain.headers["upgrade"]) == (426, "websocket")


async def test_the_key_comes_in_a_header_or_as_the_first_message() -> None:
    async with serving(api_keys=(KEY,)) as served:
        assert await refusal(served, headers={"x-api-key": "wrong-one"}) == 401
        assert await refusal(served, "/nope") == 401
        async with connected(served, headers={"Authorization": f"Bearer {KEY}"}) as client:
            await client.generate("s", saying("x"), **MODEL)
            assert [(await client.next())["type"] for _ in range(2)] == ["token", "done"]
            await client.send("auth", key="wrong-one")
            assert (await client.error())[0] == "invalid_api_key"
        async with connected(served) as client:
            await client.send("auth", key=KEY)
            await client.generate("s", saying("x"), **MODEL)
            assert (await client.next())["content"] == "x"
        wrong = [{"type": "auth", "key": "wrong-one"}, {"type": "ping"}, {"type": "auth", "key": "ö"}]
        for first in (*wrong, {"type": "auth", "key": KEY, " " * (1 << 14): 0}):
            async with connected(served) as client:
                await client.socket.send_json(first)
                await client.generate("s", saying("x"), **MODEL)
                await told_that_its_key_is_missing(client)
        assert len(served.engines.seen) == 2
    async with serving(api_keys=(KEY,), header_timeout_s=0.3) as served, connected(served) as silent:
        await told_that_its_key_is_missing(silent)


async def told_that_its_key_is_missing(client: Client) -> None:
    assert (await client.error())[:2] == ("invalid_api_key", None)
    assert await client.closed() == 4401


async def test_connections_and_what_runs_on_one_are_bounded_and_an_end_makes_room(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "MAX_CONNECTIONS", 1)
    monkeypatch.setattr(connection, "MAX_TASKS", 1)
    async with connected(served) as client:
        assert await refusal(served) == 503
        await client.generate("a", {"hold": 1}, **MODEL)
        await client.generate("b", **MODEL)
        assert (await client.error())[:2] == ("overloaded", "b")
        await client.send("cancel", session_id="a")
        assert (await client.error())[:2] == ("cancelled", "a")
        await client.generate("b", saying("x"), **MODEL)
        assert (await client.next())["content"] == "x"
    await until_closed(served)
    async with connected(served):
        pass


async def until_closed(served: Served) -> None:
    async with asyncio.timeout(WAIT_S):
        while served.roundhouse.app._websockets._connections:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_with_its_connection_every_change_of_the_adapter_ends(served: Served) -> None:
    served.engines.may_load.clear()
    async with connected(served) as client:
        for path in ("pirate", None, "pirate"):
            await client.send("load_adapter", adapter_path=path)
        await client.send("ping")
        assert await client.next() == {"type": "pong"}
    await until_closed(served)


@asynccontextmanager
async def one_who_reads_nothing(served: Served) -> AsyncIterator[None]:
    """Entered once the buffers on the way to it are full, of tokens and of answers to its pings."""
    async with raw(served) as lazy:
        lazy.writer.transport.pause_reading()  # type: ignore[attr-defined]
        fake = {"stream": [delta(content="x" * 64_000)], "times": 200}  # more than what buffers hold
        generate = {"type": "generate", "session_id": "s", "messages": [{"fake": fake}], **MODEL}
        lazy.writer.write(frame(json.dumps(generate).encode()))
        await asyncio.wait_for(served.engines.arrived.wait(), WAIT_S)
        lazy.writer.write(frame(b"", PING) * 1000)
        protocols = [one for one in served.server.server_state.connections if hasattr(one, "writable")]
        async with asyncio.timeout(WAIT_S):
            while all(protocol.writable.is_set() for protocol in protocols):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        yield


async def test_who_reads_nothing_holds_up_nobody(served: Served) -> None:
    async with one_who_reads_nothing(served), connected(served) as other:
        for _ in range(3):
            await other.generate("s", saying("x"), **MODEL)
            assert [(await other.next())["type"] for _ in range(2)] == ["token", "done"]
        assert not served.engines.seen[0].aborted.is_set()


async def test_who_reads_nothing_is_let_go() -> None:
    async with serving(write_timeout_s=0.3) as served, one_who_reads_nothing(served):
        await asyncio.wait_for(served.engines.seen[0].aborted.wait(), WAIT_S)
        await until_idle(served)
