"""What `mobillm new` wrote runs with Flower's own command and with `mobillm run`."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mobillm_flower.launch import read_app
from mobillm_flower.launch.superlink import simulation_superlink
from tests.support.tiny_models import save_tiny


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_new_app_runs_with_flwr_run_and_with_mobillm_run(tmp_path: Path) -> None:
    program = str(Path(sys.executable).parent / "mobillm")
    answer = subprocess.run([program, "new", "first_app"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "mobillm run first_app" in answer.stdout
    app = read_app(tmp_path / "first_app")
    small = f"backbone.name={save_tiny(tmp_path / 'bert', 'bert')} trainer.epochs=2"

    home = tmp_path / "flower"
    home.mkdir()
    with simulation_superlink(home, home / "superlink.log") as (connection, _):
        connection = replace(connection, environment={**connection.environment, "MOBILLM_HOME": str(tmp_path / "home")})
        words = ["--stream", "--federation-config", "num-supernodes=4 init-args-num-cpus=2"]
        said = connection.flwr("run", str(app.folder), connection.name, *words, "-c", f'settings="{small}"')
        assert said.returncode == 0, said.stdout + said.stderr
        (run,) = json.loads(connection.flwr("list", connection.name, "--format", "json").stdout)["runs"]
    assert run["status"] == "finished:completed", said.stdout

    words = [word for setting in small.split() for word in ("-c", setting)]
    command = [program, "run", str(app.folder), "--out", str(tmp_path / "run"), "--json", *words]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    assert found["status"] == "finished:completed"
    assert found["references"]["num_test"] == 15
    assert (tmp_path / "run" / "side_network" / "model.safetensors").exists()
