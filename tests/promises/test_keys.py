"""Keys with names and limits, as clients meet them, and that a file of them is read again while all
goes on: in one process, in a service, and in one with several workers."""

import http.client
import signal
from pathlib import Path

import orjson
import pytest
from end_to_end import (
    FINISH,
    TOKEN,
    chat,
    error_shape,
    events,
    running_proxy,
    running_upstream,
)
from server_process import Served, run, serving
from upstream_scripts import responds, streams
from worker_service import running_workers

pytestmark = pytest.mark.every_loop

HEAD = '[[keys]]\nname = "{0}"\nkey = "key-of-{0}"\n'
PAID = events(TOKEN, FINISH, b"[DONE]")  # 10 and 4 tokens of gpt-oss-120b: 0.0000065 dollars


def write(path: Path, *entries: str) -> str:
    """A keys file with such entries: a name, and limits where there are some."""
    lines = []
    for entry in entries:
        name, _, limits = entry.partition(" ")
        lines += [HEAD.format(name), limits, "\n"]
    file = path / "keys.toml"
    file.write_text("".join(lines))
    return str(file)


def spoil(path: str, text: str | None) -> None:
    """Have something else in the file; None: have no file."""
    if text is None:
        Path(path).unlink()
    else:
        Path(path).write_text(text)


def request_of(
    name: str, body: bytes = b'{"model":"gpt-oss-120b","messages":[],"max_tokens":0,"stream":true}'
) -> bytes:
    return chat(body, b"Authorization: Bearer key-of-%s" % name.encode())


@pytest.mark.anyio
async def test_each_key_has_its_limits_and_its_account(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        # A request reserves 0.00000595 dollars, of its prompt, and a response costs 0.0000065.
        'alice models = ["gpt-oss-120b"]\nusd_per_day = 0.0000127',
        "bob requests_per_minute = 1",
    )
    settings = {"APE_API_KEYS_FILE": path, "APE_API_KEY": "carol:key-of-carol,key-of-nobody"}
    async with (
        running_upstream(streams(PAID)) as upstream,
        running_proxy(upstream.port, **settings) as it,
    ):
        client = await it.client()
        for name, status in (("alice", 200), ("alice", 200), ("bob", 200), ("carol", 200)):
            assert (await client.request(request_of(name))).status == status
        spent = await client.request(request_of("alice"))
        assert (spent.status, spent.headers["x-should-retry"]) == (429, "false")
        assert error_shape(spent.json()) == ("too_many_requests_error", "budget_exceeded")
        limited = await client.request(request_of("bob"))
        assert error_shape(limited.json()) == ("too_many_requests_error", "rate_limit_exceeded")
        other = await client.request(request_of("alice", b'{"model":"zai-glm-4.7","messages":[]}'))
        assert (other.status, other.json()["code"]) == (404, "model_not_found")
        assert (await client.request(request_of("nobody"))).status == 200
        assert (await client.request(request_of("mallory"))).status == 401
        text = (await client.get("/metrics")).body.decode()
        assert text.count("client_requests_total{") == 3  # nobody else has made a label
        for name, requests, paid in (("alice", 4, 2), ("bob", 2, 1), ("carol", 1, 1)):
            labels = f'{{client="{name}"'
            assert f"client_requests_total{labels}}} {requests}.0\n" in text
            assert f'client_tokens_total{labels},type="prompt"}} {10 * paid}.0\n' in text
            assert f'client_tokens_total{labels},type="completion"}} {4 * paid}.0\n' in text
        outcomes = [line["outcome"] for line in it.lines.exchanges()[4:7]]
        assert outcomes == ["budget_exceeded", "rate_limited", "refused"]


@pytest.mark.anyio
async def test_a_new_file_holds_for_what_comes_and_drops_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, "alice", "bob")
    async with (
        running_upstream(streams(events(TOKEN), then="stay")) as upstream,
        running_proxy(upstream.port, APE_API_KEYS_FILE=path) as it,
    ):
        alice, bob, carol = [await it.client() for _ in range(3)]
        await alice.send(request_of("alice"))
        await alice.peek_until(TOKEN)
        upstream.script = responds
        assert (await carol.request(request_of("carol"))).status == 401
        write(tmp_path, "bob requests_per_minute = 1", "carol")
        await it.proxy.reread_keys()
        assert it.lines.all()[-1]["message"] == "Keys file read"
        assert (await carol.request(request_of("carol"))).status == 200
        assert [(await bob.request(request_of("bob"))).status for _ in range(2)] == [200, 429]
        assert (await (await it.client()).request(request_of("alice"))).status == 401
        in_flight = await it.metric("cerebras_proxy_requests_in_flight")
        assert in_flight == 2  # hers, and the scrape's


@pytest.mark.anyio
@pytest.mark.parametrize("bad", ["[[keys]]\nname = 'a'\nkey = 1\n", "", None])
async def test_a_bad_file_is_refused_and_the_old_keys_stay(tmp_path: Path, bad: str | None) -> None:
    path = write(tmp_path, "alice requests_per_minute = 2")
    async with (
        running_upstream(responds) as upstream,
        running_proxy(upstream.port, APE_API_KEYS_FILE=path) as it,
    ):
        client = await it.client()
        assert (await client.request(request_of("alice"))).status == 200
        spoil(path, bad)
        await it.proxy.reread_keys()
        line = it.lines.all()[-1]
        assert line["level"] == "error"
        assert line["problem"].startswith("APE_API_KEYS_FILE names a file ")
        assert [(await client.request(request_of("alice"))).status for _ in range(2)] == [200, 429]
        write(tmp_path, "bob")
        await it.proxy.reread_keys()
        assert (await client.request(request_of("bob"))).status == 200


@pytest.mark.anyio
async def test_a_name_in_both_is_one_name_with_the_files_limits(tmp_path: Path) -> None:
    path = write(tmp_path, "alice requests_per_minute = 2")
    settings = {"APE_API_KEYS_FILE": path, "APE_API_KEY": "alice:key-of-old"}
    async with (
        running_upstream(responds) as upstream,
        running_proxy(upstream.port, **settings) as it,
    ):
        client = await it.client()
        found = [
            (await client.request(request_of(name))).status for name in ("alice", "old", "old")
        ]
        assert found == [200, 200, 429]


def status_of(served: Served, name: str) -> int:
    connection = served.connection()
    status = requested(connection, name)
    connection.close()
    return status


def requested(connection: http.client.HTTPConnection, name: str) -> int:
    connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer key-of-{name}"})
    response = connection.getresponse()
    response.read()
    return response.status


@pytest.mark.parametrize("nohup", [False, True])
def test_sighup_reloads_the_file(backend: str, nohup: bool, tmp_path: Path) -> None:
    path = write(tmp_path, "alice")
    before = signal.getsignal(signal.SIGHUP)
    if nohup:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with serving("serve", "--demo", BACKEND=backend, APE_API_KEYS_FILE=path) as served:
            stream = served.connection()
            headers = {
                "Authorization": "Bearer key-of-alice",
                "Content-Type": "application/json",
                "X-Simulate": "fault=stall, at=3",
            }
            stream.request(
                "POST",
                "/v1/chat/completions",
                b'{"stream":true,"messages":[{"role":"user","content":"a"}]}',
                headers,
            )
            assert stream.getresponse().read(6) == b"data: "
            assert (status_of(served, "alice"), status_of(served, "bob")) == (200, 401)
            write(tmp_path, "bob")
            served.process.send_signal(signal.SIGHUP)
            assert served.line("keys")["keys"] == 1
            assert (status_of(served, "alice"), status_of(served, "bob")) == (401, 200)
            write(tmp_path, "carol requests_per_minute = 0")
            served.process.send_signal(signal.SIGHUP)
            assert "requests_per_minute" in served.line("problem")["problem"]
            assert status_of(served, "bob") == 200
            assert served.metric("cerebras_proxy_requests_in_flight") == 2
            stream.close()
            served.process.send_signal(signal.SIGTERM)
            assert served.ended() == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_wrong_file_is_a_wrong_setting(tmp_path: Path) -> None:
    path = write(tmp_path, "alice usd_per_day = -1")
    refused = run("serve", "--demo", APE_API_KEYS_FILE=path)
    assert refused.returncode == 2
    assert "wrong usd_per_day" in orjson.loads(refused.stdout)["problem"]
    assert "key-of-alice" not in refused.stdout


def test_all_workers_have_the_new_keys_and_so_has_one_that_comes_later(
    backend: str, tmp_path: Path
) -> None:
    path = write(tmp_path, "alice")
    with running_workers(backend, tmp_path, APE_API_KEYS_FILE=path) as service:
        ours = [service.connection(number) for number in (1, 2)]
        assert [requested(connection, "alice") for connection in ours] == [200, 200]
        write(tmp_path, "bob")
        service.served.process.send_signal(signal.SIGHUP)
        workers = {service.served.line("keys")["worker"] for _ in range(2)}
        assert workers == {1, 2}
        assert [requested(connection, "bob") for connection in ours] == [200, 200]
        assert [requested(connection, "alice") for connection in ours] == [401, 401]
        Path(path).write_text("nothing")
        service.served.process.send_signal(signal.SIGHUP)
        problem = service.served.line("problem")
        assert "worker" not in problem
        service.end(1)
        service.wait_for(1)
        replaced = service.connection(1)
        assert [requested(connection, "bob") for connection in (replaced, ours[1])] == [200, 200]
