"""report.html from run folders that the server's own parts wrote."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mobillm_flower.cli import app
from mobillm_flower.errors import RunFailed
from mobillm_flower.reports.confusion import MOST_NAMED
from mobillm_flower.reports.html import write_report
from mobillm_flower.reports.table import not_used, results_rows
from mobillm_flower.runs import device_events, events
from mobillm_flower.runs.folder import RunFolder
from mobillm_flower.runs.record import read_run
from tests.support.html_page import page_of
from tests.support.run_folders import make_references, write_run

EVERY_PART = {"results", "learning", "confusion", "devices", "memory", "gates", "protection", "settings"}


def test_a_completed_run_has_every_part_with_its_figures(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run"))
    assert set(page.sections) == EVERY_PART
    assert {found["href"] for found in page.all("a")} == {f"#{name}" for name in EVERY_PART}
    state = page.all("p", "state")[0]
    assert state["class"] == "state completed"
    assert "in 75 s" in page.text
    references = make_references()
    for figure in (f"{references['tuned']:.4f}", "0.3333", "0.7000", "logistic regression", "bit by bit"):
        assert figure in page.sections["results"]
    assert "epoch 2, step 6: 0.7500" in page.sections["learning"]
    assert "weights of epoch 2" in page.sections["learning"]
    assert "111.00 MB" in page.sections["memory"]
    assert "1.11 times" in page.sections["memory"]
    assert "0.2500" in page.sections["gates"]
    assert "block 3" in page.sections["gates"]


def test_every_chart_has_a_text_alternative(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run"))
    charts = page.all("svg")
    assert len(charts) == 1 + 2 + 3 + 1 + 1  # references, curves, devices, memory, gates
    assert all(chart["role"] == "img" and len(chart["aria-label"]) > 20 for chart in charts)
    texts = [found["class"] for found in page.all("text")]
    assert texts.count("axis") == 1 + 2 * 2 + 3 * 2 + 1 + 1  # bars name one axis, the others both


def test_a_page_needs_nothing_from_outside_and_no_script(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run"))
    assert {tag for tag, _ in page.elements} & {"script", "link", "img", "iframe", "object", "image", "use"} == set()
    for _, attributes in page.elements:
        assert not {name for name in attributes if name.startswith("on") or name in ("src", "action", "xlink:href")}
    text = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert not re.search(r"https?://|url\(|@import", text)
    policy = next(found for found in page.all("meta") if found.get("http-equiv"))
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'"


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    first = write_report(path).read_bytes()
    assert write_report(path, tmp_path / "elsewhere" / "page.html").read_bytes() == first


def test_the_confusion_matrix_is_a_table_with_names_and_counts(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run"))
    counts = make_references()["confusion"]
    cells = page.all("td", "right") + page.all("td", "wrong")
    assert len(cells) == 9
    for i in range(3):
        assert f"\n{counts[i][i]}\n" in page.sections["confusion"]
    assert f"{counts[0][0] + counts[1][1] + counts[2][2]} of 90 test samples" in page.sections["confusion"]


def test_many_classes_are_a_heat_map_and_the_most_confused_pairs(tmp_path: Path) -> None:
    labels = tuple(f"intent {i}" for i in range(150))
    references = make_references(labels)
    references["confusion"][7][9] += 50
    page = page_of(write_run(tmp_path / "run", labels=labels, references=references))
    confusion = page.sections["confusion"]
    assert "matrix" not in {found.get("class") for found in page.all("div")}
    rows = confusion.split("samples\nshare\n")[1].split("\n")
    assert rows[:2] == ["intent 7", "intent 9"]
    assert sum(line.startswith("intent ") for line in rows) == 2 * 25
    chart = next(found for found in page.all("svg") if "150 classes" in found["aria-label"])
    wrong = sum(map(sum, references["confusion"])) - sum(references["confusion"][i][i] for i in range(150))
    assert f"{wrong:,} samples off the diagonal" in chart["aria-label"]
    assert len((tmp_path / "run" / "report.html").read_bytes()) < 200_000


def test_classes_beyond_what_can_be_drawn_are_added_up_in_blocks(tmp_path: Path) -> None:
    labels = tuple(f"c{i}" for i in range(450))
    page = page_of(write_run(tmp_path / "run", labels=labels))
    assert "3×3 classes" in page.sections["confusion"]


def test_a_run_without_mistakes_is_drawn_too(tmp_path: Path) -> None:
    labels = tuple(f"c{i}" for i in range(MOST_NAMED + 1))
    references = make_references(labels)
    references["confusion"] = [[5 * (i == j) for j in labels] for i in labels]
    page = page_of(write_run(tmp_path / "run", labels=labels, references=references))
    assert "105 of 105 test samples" in page.sections["confusion"]


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("started", "0 devices were met"),
        ("met", "3 devices were met"),
        ("uploading", "30 of 60 samples are held"),
        ("training", "epoch 3 of at most 20 is done"),
    ],
)
def test_a_run_in_progress_says_how_far_it_is(tmp_path: Path, end: str, said: str) -> None:
    page = page_of(write_run(tmp_path / "run", end=end))
    assert page.all("p", "state in-progress")
    assert said in page.text
    assert set(page.sections) == EVERY_PART - {"confusion", "memory", "gates"}
    assert "the run is not completed" in page.sections["results"]
    assert ("No device has been met" in page.sections["devices"]) == (end == "started")


def test_a_line_that_is_being_written_is_left_for_the_next_time(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", end="uploading")
    with (path / "events.jsonl").open("a") as stream:
        stream.write('{"time": 1.0, "event": "ep')
    assert "30 of 60 samples are held" in page_of(path).text


def test_a_failed_run_says_why(tmp_path: Path) -> None:
    page = page_of(
        write_run(tmp_path / "run", end="failed", reason="no sample was received: <b>every device</b> failed")
    )
    assert page.all("p", "state failed")
    assert "no sample was received: <b>every device</b> failed" in page.text
    assert not page.all("b")


def test_what_an_earlier_session_measured_is_not_shown_for_a_later_one(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    RunFolder(path).make().append(events.Started("PaeMobiLLM"))
    page = page_of(path)
    assert page.all("p", "state in-progress")
    assert "2: it was interrupted and went on" in page.text
    assert "0.7000" not in page.sections["results"]
    assert "75 s" not in page.sections["results"]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (None, "holds no readable events.jsonl; name a run's folder"),
        ("", "holds no event yet"),
        ('{"time": 1.0, "event"', "holds no event yet"),
        ("not json\n", "is damaged: a line is no event"),
        ('{"time": 1.0}\n', "is damaged: a line is no event"),
        ("[]\n", "is damaged: a line is no event"),
    ],
)
def test_a_folder_without_events_is_refused_in_words(tmp_path: Path, text: str | None, match: str) -> None:
    if text is not None:
        (tmp_path / "events.jsonl").write_text(text)
    with pytest.raises(RunFailed, match=match):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("name", ["results.json", "side_network/config.json", "settings.yaml"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    path = write_run(tmp_path / "run")
    (path / name).write_text("{")
    with pytest.raises(RunFailed, match=name):
        write_report(path)


def test_a_run_without_references_or_settings_says_so(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    (path / "results.json").unlink()
    (path / "settings.yaml").unlink()
    page = page_of(path)
    assert "were not measured: they need all texts in one place" in page.sections["results"]
    assert "was not measured" in page.sections["confusion"]
    assert "was not measured" in page.sections["memory"]
    assert "no settings.yaml" in page.sections["settings"]


HOSTILE = "</title></style><script>document.title='taken'</script><img src=x onerror=alert(1)>\"'&amp;"


def test_hostile_names_are_shown_and_not_obeyed(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", labels=(HOSTILE, "\ud800\x00", "music"), backbone=HOSTILE)
    run = RunFolder(path).make()
    device = "00000001" + "0" * 24
    run.append(device_events.Rejected(device, rule=HOSTILE, detail=HOSTILE))
    run.append(device_events.Failure(HOSTILE, device=device))
    run.append(device_events.Dropped(device, HOSTILE))
    run.append(device_events.NodeRefused(node=HOSTILE, reason=HOSTILE))
    page = page_of(path)
    allowed = {"html", "head", "meta", "title", "style", "body", "header", "h1", "h2", "h3", "p", "dl", "div", "dt"}
    allowed |= {"dd", "ul", "li", "strong", "span", "nav", "a", "main", "section", "table", "caption", "thead", "tr"}
    allowed |= {"th", "td", "tbody", "tfoot", "svg", "text", "rect", "line", "path", "circle", "br", "details"}
    allowed |= {"summary", "footer"}
    assert {tag for tag, _ in page.elements} <= allowed
    assert page.sections["devices"].count(HOSTILE) >= 5
    assert page.sections["confusion"].count(HOSTILE) == 2
    assert "\ufffd\ufffd" in page.sections["confusion"]
    assert HOSTILE in page.text.split("Backbone\n")[1]


def test_devices_are_added_up_from_the_events_trouble_first(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", end="uploading")
    run, device = RunFolder(path).make(), "00000001" + "0" * 24
    for _ in range(2):
        run.append(device_events.Rejected(device, rule="payload-hash", detail="other bytes"))
    run.append(device_events.Failure("no answer within 5 s", device=device))
    run.append(device_events.Dropped(device, "3 bad packets"))
    page = page_of(path)
    rows = page.sections["devices"].split("\ndropped\n")[1].split("\n")
    assert rows[:11] == [
        *("00000001", "10 of 20", "1", "5.00 kB", "–", "0.25 s", "–"),
        *("payload-hash × 2", "1", "0", "3 bad packets"),
    ]
    assert rows[11] == "00000003"  # then the largest upload
    assert rows[33:37] == ["all 3", "30", "3", "15.30 kB"]
    assert "no answer within 5 s" in page.sections["devices"]
    assert ("devices with trouble", "1", "see events.jsonl") in results_rows(read_run(path), {})


def test_a_large_fleet_is_cut_short_and_says_so(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run", num_devices=620))
    boxes = [found["aria-label"] for found in page.all("div", "devices")]
    assert boxes == ["Devices, those with trouble first; 120 more are in the run's log"]
    assert "all 620" in page.sections["devices"]
    assert len(page.all("rect", "bar")) < 700


def test_a_mixed_fleet_with_an_outlier_says_both(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", end="training")
    run = RunFolder(path).make()
    first, second = (f"{number:08x}{'0' * 24}" for number in (1, 2))
    run.append(device_events.DeviceMet(second, backbone="other", layers=9, num_train=20, num_test=5))
    run.append(device_events.Dropped(second, "not connected for 9 s"))
    run.append(device_events.Returned(second))
    for name, layers, trained in (("minilm", 3, True), ("other", 9, False)):
        kind: dict[str, Any] = {"type": name, "backbone": name, "layers": layers, "width": 32, "trained": trained}
        run.append(events.TypeEvaluation(1, **kind, num_examples=10, devices=2, metrics={"accuracy": 0.25}))
    for device, loss, outlier in ((first, 4.5, True), (second, 0.5, False)):
        agreement = None if outlier else 0.875
        run.append(device_events.Diagnosis(device, 10, loss, agreement, distance=5.0, outlier=outlier))
    page = page_of(path)
    assert "other, 9 layers, width 32\naccuracy 0.2500\n10\n2\nno: it sent no samples" in page.sections["learning"]
    devices = page.sections["devices"]
    assert "dropped\nloss\nagreement\nbackbone\n" in devices
    assert "no\n4.5000 (far above)\nminilm, 3 layers\n" in devices
    assert "no\n0.5000\n0.8750\nother, 9 layers\n" in devices
    assert "1 far above" in devices


def test_training_that_was_stopped_does_not_claim_the_best_weights(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", end="training")
    RunFolder(path).append(events.Stopped("stop.seconds=5 have passed"))
    RunFolder(path).append(events.Trained(steps=9, epochs=3))
    assert "the last weights were kept: stop.seconds=5 have passed." in page_of(path).sections["learning"]
    RunFolder(path).append(events.Started("PaeMobiLLM"))  # and it goes on
    assert "(the large dot) so far." in page_of(path).sections["learning"]


def test_a_solution_is_not_shown_as_training_by_steps(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", losses=(0.5, 0.6), end="training")  # the second is of more samples
    RunFolder(path).append(events.Trained(steps=3, epochs=2, solved=True))
    page = page_of(path)
    assert "The last solution was kept." in page.sections["learning"]
    assert "lowest validation loss" not in page.sections["learning"]
    shown = {what: (figure, remark) for what, figure, remark in results_rows(read_run(path), {})}
    shown |= {
        row[0]: row[1:] for row in results_rows(read_run(path), {"metric": "x", "left_out": {"centralized": 9.0}})
    }
    assert shown["centralized side-tuning"] == (
        "left out",
        "about 9 s, longer than the run; mobillm run --references measures it",
    )
    assert shown["side network"] == ("solved", "in closed form, 2 times as samples came")
    assert "server steps" not in shown


def test_training_that_diverges_is_shown_as_such(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    page = page_of(write_run(tmp_path / "run", losses=(nan, 0.5, inf)))
    assert "weights of epoch 2" in page.sections["learning"]
    page = page_of(write_run(tmp_path / "all", losses=(nan, nan)))
    assert "No validation loss is a finite number" in page.sections["learning"]
    assert "weights of epoch" not in page.sections["learning"]


def test_a_run_without_a_validation_share_says_why_there_is_no_curve(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", end="uploading", overrides=("trainer.validation-share=0",))
    RunFolder(path).append(events.Epoch(1, 3))
    assert "trainer.validation-share is 0" in page_of(path).sections["learning"]


def test_a_regression_has_no_confusion_matrix_and_may_be_below_zero(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run", labels=(), overrides=("task.kind=regression",)))
    assert "confusion" not in page.sections
    assert "spearman" in page.sections["results"]
    assert "-0.5000" in page.sections["results"]


def test_the_command_makes_the_page_again(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", end="training")
    answer = CliRunner().invoke(app, ["report", str(path)])
    assert answer.exit_code == 0
    assert answer.output.endswith("run/report.html   the run: in progress\n")
    file = tmp_path / "page.html"
    answer = CliRunner().invoke(app, ["report", str(path), "--out", str(file), "--json"])
    assert json.loads(answer.output) == {"report": str(file), "run": str(path), "outcome": "in progress"}
    assert file.read_bytes() == (path / "report.html").read_bytes()


def test_the_command_refuses_a_folder_that_is_no_run(tmp_path: Path) -> None:
    answer = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert isinstance(answer.exception, RunFailed)
    (tmp_path / "taken").write_text("")
    with pytest.raises(RunFailed, match=r"cannot be written: .*; name another file with --out"):
        write_report(write_run(tmp_path / "run", end="met"), tmp_path / "taken" / "report.html")


def test_the_table_says_how_many_devices_and_rows_took_no_part_and_why(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert not {"devices not used", "rows left out"} & {row[0] for row in results_rows(read_run(run), {})}
    folder = RunFolder(run)
    for node in ("1", "2"):
        folder.append(device_events.NodeRefused(node=node, reason="no train row is left"))
    for device, left_out in (("a" * 32, {"train no-label": 2}), ("b" * 32, {"train no-label": 1, "test no-text": 4})):
        folder.append(device_events.DeviceMet(device, "minilm", 6, 1, 1, left_out=left_out))
    record = read_run(run)
    rows = {what: (figure, remark) for what, figure, remark in results_rows(record, {})}
    assert rows["devices not used"] == ("2", "no train row is left (2)")
    assert rows["rows left out"] == ("7", "train: 3 without a label; test: 4 without a text")
    assert set(not_used(record)) == {"1", "2"}
