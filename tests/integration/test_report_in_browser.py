"""report.html as a browser draws it: on a desk and on a phone, in light and in dark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mobillm_flower.reports.html import write_report
from mobillm_flower.runs.device_events import Dropped
from mobillm_flower.runs.folder import RunFolder
from tests.support.browser import chromium, measure
from tests.support.run_folders import make_references, write_run

WIDTHS = (1280, 390)
SCRIPT = """
const all = (selector) => [...document.querySelectorAll(selector)];
const box = (item) => item.getBoundingClientRect();
const outside = (inner, outer) => box(inner).left < box(outer).left - 1 || box(inner).right > box(outer).right + 1
  || box(inner).top < box(outer).top - 1 || box(inner).bottom > box(outer).bottom + 1;
const style = (item) => window.getComputedStyle(item);
const cut = all('svg text').filter((text) => outside(text, text.closest('svg')));
const small = all('svg text').filter((text) => {
  const svg = text.closest('svg');
  return parseFloat(style(text).fontSize) * box(svg).width / svg.viewBox.baseVal.width < 9.5;
});
const boxes = all('section:not([hidden]) .scroll').filter((item) => item.checkVisibility());
return {
  title: document.title,
  scripts: document.scripts.length,
  inner: window.innerWidth,
  scroll: document.documentElement.scrollWidth,
  sections: all('section').filter((item) => box(item).height > 40 && box(item).width > 300).map((item) => item.id),
  charts: all('svg').map((svg) => [box(svg).width, box(svg).height]),
  cut: cut.map((text) => text.textContent),
  small: small.map((text) => text.textContent),
  escaping: all('svg, p, dl, nav, .scroll').filter((item) => box(item).right > window.innerWidth + 1).length,
  scrolling: boxes.filter((item) => item.scrollWidth > item.clientWidth + 1).length,
  boxes: boxes.length,
  columns: all('#devices svg')[0]?.querySelectorAll('rect').length ?? 0,
  memory: all('#memory rect').map((bar) => box(bar).width),
  cells: all('.matrix td.right').map((cell) => style(cell).backgroundColor),
  shades: all('#confusion svg path').map((path) => style(path).fill),
  background: style(document.body).backgroundColor,
  colour: style(document.body).color,
};
"""


@pytest.fixture(scope="module", autouse=True)
def _needs_chromium() -> None:
    chromium()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return write_report(write_run(tmp_path_factory.mktemp("completed") / "run", num_devices=12))


@pytest.mark.parametrize("width", WIDTHS)
def test_a_completed_run_fits_the_window_and_is_drawn(page: Any, tmp_path: Path, width: Any) -> None:
    found = measure(page, SCRIPT, width=width, folder=tmp_path)
    assert found["inner"] == width
    assert found["scroll"] <= width
    assert found["escaping"] == 0
    parts = ["results", "learning", "confusion", "devices", "memory", "gates", "protection", "settings"]
    assert found["sections"] == parts
    assert len(found["charts"]) == 8
    assert all(wide >= 280 and high >= 60 for wide, high in found["charts"])
    assert found["cut"] == []
    assert found["small"] == []
    assert found["columns"] == 12
    ours, plain = found["memory"]
    assert ours / plain == pytest.approx(1.11, abs=0.01)
    assert len(set(found["cells"])) >= 1
    assert "rgba(0, 0, 0, 0)" not in found["cells"]
    if width < 500:
        assert 0 < found["scrolling"] < found["boxes"]  # the wide tables, in their own boxes


@pytest.mark.parametrize("width", WIDTHS)
def test_many_classes_and_long_or_hostile_names_fit_too(tmp_path: Path, width: Any) -> None:
    labels = tuple(f"a-rather-long-name-of-an-intent-without-a-break-{i}" for i in range(150))
    hostile = "</title><script>document.title='taken'</script>" + "w" * 300
    references = {**make_references(labels), "metric": "a-metric-with-a-long-name-" * 9}
    path = write_run(tmp_path / "run", labels=labels, num_devices=250, backbone=hostile, references=references)
    run, device = RunFolder(path).make(), "00000001" + "0" * 24
    run.append(Dropped(device, hostile))
    found = measure(write_report(path), SCRIPT, width=width, folder=tmp_path)
    assert found["scroll"] <= width == found["inner"]
    assert found["escaping"] == 0
    assert found["cut"] == []
    assert found["scripts"] == 0
    assert found["title"] == "Run run: completed"
    assert len(found["shades"]) >= 2
    assert len(set(found["shades"])) == len(found["shades"])
    assert found["columns"] == 200


def test_a_failed_run_fits_a_phone(tmp_path: Path) -> None:
    reason = "no device could be used: " + "/a/very/long/path" * 30
    path = write_run(tmp_path / "run", end="failed", reason=reason)
    found = measure(write_report(path), SCRIPT, width=390, folder=tmp_path)
    assert found["scroll"] <= 390
    assert found["escaping"] == 0
    assert found["title"] == "Run run: failed"
    assert found["sections"] == ["results", "learning", "devices", "protection", "settings"]


def test_the_page_follows_the_system_into_the_dark(page: Any, tmp_path: Path) -> None:
    light = measure(page, SCRIPT, width=1280, folder=tmp_path)
    dark = measure(page, SCRIPT, width=1280, folder=tmp_path, dark=True)
    assert _lightness(light["background"]) > 200 > 100 > _lightness(light["colour"])
    assert _lightness(dark["background"]) < 60 < 180 < _lightness(dark["colour"])
    assert dark["cells"] != light["cells"]


def _lightness(colour: str) -> float:
    """Mean of the three numbers in "rgb(1, 2, 3)"."""
    numbers = [float(number) for number in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    assert len(numbers) == 3
    return sum(numbers) / 3
