"""A device with a node config that a page shows takes part in a run of the quickstart whose rows are no partition."""

from __future__ import annotations

import ast
import re
import shlex

import pytest
from flwr.app import Context, RecordDict

from mobillm_flower.clients.own import check_run, device_settings
from mobillm_flower.launch import read_app
from tests.support.pages import ROOT

SHOWN = sorted(
    {
        words
        for page in (ROOT / "docs").rglob("*.md")
        for words in re.findall(r'--node-config "([^"]*)"', page.read_text("utf-8"))
    }
)


def test_pages_show_some() -> None:
    assert len(SHOWN) >= 3


@pytest.mark.parametrize("words", SHOWN)
def test_a_run_of_the_quickstart_is_not_refused(words: str) -> None:
    pairs = (word.split("=", 1) for word in shlex.split(words.replace("'", "\\'")))
    node = {key: ast.literal_eval(value) for key, value in pairs}
    app = read_app(ROOT / "examples" / "quickstart")
    run = {key: value for key, value in app.config.items() if not key.startswith("data.partition")}
    if "privacy.joint-epsilon" in node:  # as the page says that the run has to be
        run |= {"side-network.name": "discriminant", "loss.name": "logit", "activations.codec": "int8"}
    context = Context(run_id=1, node_id=1, node_config=node, state=RecordDict(), run_config=run)
    check_run(device_settings(context), context)
