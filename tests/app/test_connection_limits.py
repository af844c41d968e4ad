"""Clients that send too much, too slowly, or do not read (cases 10, 20, 21)."""

from __future__ import annotations

import asyncio
import socket

import pytest

from tests.app.serving import Served, serving

WAIT_S = 5.0
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"


async def send_and_read(port: int, *parts: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)
        return await asyncio.wait_for(reader.read(), WAIT_S)
    finally:
        writer.close()


async def test_headers_that_do_not_end_in_time_are_refused() -> None:
    async with serving(header_timeout_s=0.6) as served:
        kept_alive = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
        begun, silent, next_begun = await asyncio.gather(
            send_and_read(served.port, b"GET /v1/models HTTP/1.1\r\nHo"),
            send_and_read(served.port),
            send_and_read(served.port, kept_alive + b"GET /v1/mo"),
        )
        assert b" 408 " in begun
        assert silent == b""
        assert b" 200 " in next_begun
        assert b" 408 " in next_begun
        assert (await served.chat("other")).status_code == 200


@pytest.mark.parametrize("value", [b"x: " + b"y" * 70_000, b"x: y\r\n" * 10_000, (b"x: " + b"y" * 3000 + b"\r\n") * 30])
async def test_headers_over_the_limit_are_refused(served: Served, value: bytes) -> None:
    assert b" 431 " in await send_and_read(served.port, HEAD, value)


async def test_what_is_not_http_is_refused_in_the_envelope(served: Served) -> None:
    answer = await send_and_read(served.port, b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n")
    assert b" 400 " in answer
    assert b'"error"' in answer


async def test_a_body_that_does_not_arrive_in_time_is_refused() -> None:
    async with serving(request_read_timeout_s=0.2) as served:
        answer = await send_and_read(served.port, HEAD + b"Content-Length: 100\r\n\r\n", b"{")
        assert b" 408 " in answer
        assert b"request_timeout" in answer


@pytest.mark.parametrize("length", [b"-1", b"1e3", b"0x10", b"99999999999999999999999999", b"5\r\nContent-Length: 6"])
async def test_a_strange_content_length_is_refused(served: Served, length: bytes) -> None:
    answer = await send_and_read(served.port, HEAD + b"Content-Length: " + length + b"\r\n\r\n", b"{}")
    assert answer.split(b" ", 2)[1] in (b"400", b"413")


async def test_a_client_that_does_not_read_is_cut_off_and_its_request_aborted() -> None:
    async with serving(write_timeout_s=0.3) as served:
        body = b'{"model":"other","fake":{"stream":["data: x\\n\\n"],"endless":10000}}'
        with socket.create_connection(("127.0.0.1", served.port)) as connection:
            connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            await asyncio.wait_for(served.engines.arrived.wait(), WAIT_S)
            await asyncio.wait_for(served.engines.seen[0].aborted.wait(), WAIT_S)
        assert (await served.chat("other")).status_code == 200


async def test_pooled_connections_go_before_the_engine_closes_them(served: Served) -> None:
    from app.upstream import KEEP_ALIVE_S

    assert KEEP_ALIVE_S < 5.0
    await served.chat("other")
    await served.engines.engines["other"].close_idle()
    assert [(await served.chat("other")).status_code for _ in range(3)] == [200] * 3
    assert served.engines.loads == ["other"]


async def test_an_engine_that_sends_nothing_for_too_long_is_given_up() -> None:
    async with serving(upstream_idle_timeout_s=0.3) as served:
        answer = await served.chat("other", fake={"hold": 1})
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "engine_error")
        await asyncio.wait_for(served.engines.seen[0].aborted.wait(), WAIT_S)


async def test_bodies_of_all_requests_together_are_bounded_and_their_room_is_given_back() -> None:
    async with serving(max_body_bytes=1 << 20) as served:
        large = {"model": "other", "padding": "x" * 1_000_000}
        held = [asyncio.create_task(served.chat(**large, fake={"hold": 1})) for _ in range(9)]
        async with asyncio.timeout(WAIT_S):
            done, _ = await asyncio.wait(held, return_when=asyncio.FIRST_COMPLETED)
        [refused] = [task.result() for task in done]
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        assert (await served.chat("org/chatty")).status_code == 200  # small ones fit beside them
        served.engines.may_answer.set()
        assert sorted([(await task).status_code for task in held]) == [200] * 8 + [503]
        assert served.roundhouse.app._bodies.held_bytes == 0
        assert (await served.chat(**large)).status_code == 200
