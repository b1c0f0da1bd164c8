"""The command lines of Flower's SuperLink and SuperNodes, and how the other commands reach the SuperLink."""

from __future__ import annotations

import ipaddress
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from mobillm_flower.errors import RunFailed, SettingsError
from mobillm_flower.launch.superlink import Connection, flower_environment, named_connection, program

NAME = "fleet"  # of the connection, in config.toml


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of "host:port"."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit():
        raise SettingsError(f"{address!r} is no address; it is of the form host:port, such as server.example:8000")
    return host.strip("[]"), int(port)


def check_plaintext(address: str) -> None:
    """Refuse what would send plaintext over a network."""
    check_loopback(
        address,
        "--insecure would send activations and labels in plaintext over a network; make keys with `up.py certificates` "
        "and give --keys",
    )


def check_loopback(address: str, why: str) -> None:
    """Refuse an address that another machine could reach."""
    host, _ = split_address(address)
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise SettingsError(f"{address} is no address of this machine alone, such as 127.0.0.1:8001. {why}")


def superlink_command(address: str, *, state: Path, keys: Path | None) -> list[str]:
    """Return the SuperLink's command; without keys, plaintext on the loopback interface."""
    host, port = split_address(address)
    command = [program("flower-superlink", flower_environment()), "--host", host, "--port", str(port)]
    command += ["--database", str(state / "superlink.db"), "--disable-runtime-dependency-installation"]
    if keys is None:
        check_plaintext(address)
        return [*command, "--insecure"]
    command += ["--ssl-ca-certfile", str(_there(keys / "ca.crt")), "--ssl-certfile", str(_there(keys / "server.crt"))]
    return [*command, "--ssl-keyfile", str(_there(keys / "server.key")), "--enable-supernode-auth"]


def door_command(address: str, inner: str, keys: Path) -> list[str]:
    """Return the command of the door that devices reach a SuperLink by."""
    host, port = split_address(address)
    return [sys.executable, str(Path(__file__).with_name("door.py")), host, str(port), inner, str(keys)]


def supernode_command(
    superlink: str, *, port: int, keys: Path | None, number: int, node_config: Mapping[str, str | int]
) -> list[str]:
    """Return a SuperNode's command; it presents the key device-NUMBER.key."""
    words = " ".join(f"{key}={json.dumps(value)}" for key, value in node_config.items())  # TOML's strings, too
    command = [program("flower-supernode", flower_environment()), "--superlink", superlink]
    command += ["--host", "127.0.0.1", "--port", str(port), "--node-config", words]
    if keys is None:
        check_plaintext(superlink)
        return [*command, "--insecure"]
    command += ["--root-certificates", str(_there(keys / "ca.crt"))]
    return [*command, "--auth-supernode-private-key", str(_there(keys / f"device-{number}.key"))]


def connect(home: Path, address: str, *, keys: Path | None) -> Connection:
    """Write a config.toml for a SuperLink into a folder and return the connection."""
    split_address(address)
    if keys is None:
        check_plaintext(address)
        trust = "insecure = true"
    else:
        trust = f"root-certificates = {json.dumps(str(_there(keys / 'ca.crt')))}"
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    (home / "config.toml").write_text(f"[superlink.{NAME}]\naddress = {json.dumps(address)}\n{trust}\n", "utf-8")
    return named_connection(NAME, home)


def register(connection: Connection, key: Path) -> None:
    """Let a device in by its public key; one that is registered already stays so."""
    answer = connection.flwr("supernode", "register", str(key), connection.name)
    said = answer.stdout + answer.stderr
    if answer.returncode != 0 and "already" not in said:
        raise RunFailed(f"{key.name} was not registered: {said.strip()[-400:]}")


def _there(file: Path) -> Path:
    file = file.expanduser().resolve()
    if not file.is_file():
        raise SettingsError(f"{file} is missing; make it with `up.py certificates`, or copy it from where it was made")
    return file
