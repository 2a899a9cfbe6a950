"""What a log says of itself: the run that its lines are of, the settings, and how many lines of
chat requests there must be."""

from pathlib import Path

import anyio
import pytest
from end_to_end import KEY, TOKEN, chat, events, running_proxy, running_upstream
from server_process import serving
from upstream_scripts import streams
from worker_service import CHAT, JSON, running_workers

from ape_cerebras.version import VERSION

SETTINGS = {"RUN_ID": "tuesday:7", "APE_API_KEY": "alice:client-key-0123456789"}
LINES = 5  # of chat requests


@pytest.mark.anyio
async def test_a_log_carries_its_run_its_settings_and_its_count() -> None:
    async with (
        running_upstream(streams(events(TOKEN, b"[DONE]"))) as upstream,
        running_proxy(upstream.port, LOG_LEVEL="info", **SETTINGS) as running,
    ):
        client = await running.client()
        header = b"Authorization: Bearer client-key-0123456789"
        for _ in range(LINES - 1):
            await client.request(chat(b'{"stream":true,"messages":[]}', header))
        await client.request(chat())  # without a key: it counts, too
        await client.get("/v1/models", header.decode())
        await running.lines.exchange(LINES + 1)
        running.proxy.begin_drain()
        with anyio.fail_after(1):
            await running.ended.wait()
    lines = running.lines.all()
    assert {line["run_id"] for line in lines} == {"tuesday:7"}
    [settings] = [line for line in lines if line["message"] == "Settings"]
    assert settings["version"] == VERSION
    assert settings["settings"]["RUN_ID"] == "tuesday:7"
    assert (
        settings["settings"]["CEREBRAS_API_KEY"] == settings["settings"]["APE_API_KEY"] == "(set)"
    )
    assert KEY not in str(settings)
    assert "client-key" not in str(settings)
    stopped = lines[-1]
    assert (stopped["message"], stopped["chat_requests"], stopped["lines_dropped"]) == (
        *("Stopped", LINES, 0),
    )


def test_each_start_is_a_run_of_its_own() -> None:
    runs = []
    for _ in range(2):
        with serving("serve", "--demo") as served:
            served.process.terminate()
            assert served.ended() == 0
            [run] = {line["run_id"] for line in served.lines}
            runs.append(run)
            [settings] = [line for line in served.lines if line["message"] == "Settings"]
            assert settings["settings"]["RUN_ID"] == run
    assert runs[0] != runs[1]


def test_all_workers_are_of_one_run_and_count_by_themselves(backend: str, tmp_path: Path) -> None:
    with running_workers(backend, tmp_path) as workers:
        for number in (1, 2, 2):
            connection = workers.connection(number)
            connection.request("POST", "/v1/chat/completions", CHAT, JSON)
            assert connection.getresponse().read().endswith(b"data: [DONE]\n\n")
        workers.served.process.terminate()
        assert workers.served.ended() == 0
    lines = workers.served.lines
    assert len({line["run_id"] for line in lines}) == 1
    [settings] = [line for line in lines if line["message"] == "Settings"]
    assert settings["settings"]["ASYNC_WORKERS"] == "2"
    counted = {
        line["worker"]: line["chat_requests"] for line in lines if line["message"] == "Stopped"
    }
    assert counted == {1: 1, 2: 2}
