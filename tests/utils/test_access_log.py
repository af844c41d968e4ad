import io
import json
import re

from utils.access_log import AccessLog


async def test_a_line_of_text_tells_who_asked_for_what_and_how_it_ended() -> None:
    stream = io.StringIO()
    log = AccessLog("text", stream)
    log.write("r1", "POST", "/v1/chat/completions", 200, 0.0123, "demo/a")
    log.write("r2", "GET", "/v1/models", 401, 0.001, "")
    log.flush()
    first, second = stream.getvalue().splitlines()
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} INFO    access r1 POST /v1/chat/completions 200 12\.3 ms demo/a", first
    )
    assert second.endswith("access r2 GET /v1/models 401 1.0 ms -")


async def test_a_json_line_has_the_same_in_fields() -> None:
    stream = io.StringIO()
    log = AccessLog("json", stream)
    log.write("r1", "POST", "/v1/embeddings", 200, 0.0123, "demo/a")
    log.flush()
    line = json.loads(stream.getvalue())
    assert (line["request_id"], line["status"], line["ms"], line["model"]) == ("r1", 200, 12.3, "demo/a")


async def test_a_closed_stream_does_not_stop_the_requests() -> None:
    stream = io.StringIO()
    log = AccessLog("text", stream)
    stream.close()
    log.write("r1", "GET", "/", 404, 0.1, "")
    log.flush()
