"""README and `docs/reference/comparison.md` quote the protocols' JSON."""

from __future__ import annotations

import json
from types import ModuleType

import pytest

from tests.support import pages

GENERATE = "run: python docs/generate_comparison.py"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    return pages.generator("generate_comparison")


def test_the_figures_are_up_to_date(generator: ModuleType) -> None:
    found, put = generator.load(), pages.generator("blocks").put
    readme, page = generator.README.read_text("utf-8"), generator.PAGE.read_text("utf-8")
    assert readme == put(readme, {"comparison": generator.readme(found)}), GENERATE
    assert page == put(page, generator.blocks(found)), GENERATE


def test_no_method_took_the_least_rate_it_tried_and_every_run_has_its_points(generator: ModuleType) -> None:
    found = generator.load()
    measured = generator.measured(found)
    assert measured
    for task, result in measured.items():
        settings = found[f"cost_to_target_{task}"]["settings"]
        for one in [one for name, found in result["trials"].items() if name != "pae" for one in found.values()]:
            rates = [float(value) for trial in one["trials"] for value in trial["settings"].values()]
            (best,) = one["settings"].values()
            assert len(rates) == 6 or min(rates) < float(best)
            assert len(rates) >= 3
        assert len(result["central"]) == len(settings["seeds"])
        for methods in result["partitions"].values():
            assert all(len(seeds) == len(settings["seeds"]) for seeds in methods.values())
            assert {"pae", generator.PEER} <= set(methods)


def test_what_the_readme_shows_is_what_was_measured(generator: ModuleType) -> None:
    """Each cell is made from the JSON again, without the generator's own functions."""
    tasks = generator.measured(generator.load())
    target = tasks["mrpc"]["tables"]["alpha=0.1"]["targets"]["best that side-tuning and fed-lora reach"]
    ours, lora = target["costs"]["pae"], target["costs"]["fed-lora"]
    text = generator.README.read_text("utf-8").split("<!-- comparison -->")[1].split("<!-- end -->")[0]
    computing, memory, sent, language, ahead = (line.strip("| ").split(" | ") for line in text.strip().splitlines()[2:])
    assert f"until accuracy {target['metric']:.3f}" in computing[0]
    for cells, names in ((computing, ["gflops"]), (memory, ["peak_mb"]), (sent, ["mb_up", "mb_down"])):
        one, other = (sum(costs[name] for name in names) for costs in (ours, lora))
        assert _number(cells[1]) == pytest.approx(one, rel=0.005)
        assert _number(cells[2]) == pytest.approx(other, rel=0.005)
        assert cells[3] == f"{100 * (1 - one / other):.0f} % less"
    smollm2 = json.loads((generator.RESULTS / "language_model.json").read_text("utf-8"))["sst2"]
    assert sorted(smollm2["LoRA by FedAvg"]["rounds"].values())[-1] == smollm2["LoRA by FedAvg"]["rounds"]["3"]
    one, other = smollm2["upper layers"]["flops a device"], smollm2["LoRA by FedAvg"]["flops a device"] * 3 / 4
    assert _number(language[1]) == pytest.approx(one / 1e9, rel=0.005)
    assert _number(language[2]) == pytest.approx(other / 1e9, rel=0.005)
    assert language[3] == f"{100 * (1 - one / other):.0f} % less"
    quality = tasks["sst2_sentences"]["tables"]["iid"]["quality"]
    assert _number(ahead[1]) == round(quality["pae"]["mean"], 3)
    assert _number(ahead[2]) == round(quality["fed-lora"]["mean"], 3) > _number(ahead[1])
    assert f"{100 * (_number(ahead[2]) - _number(ahead[1])):.1f} points" in ahead[3]


def _number(cell: str) -> float:
    return float(cell.split()[0].replace(",", "").strip("*"))


@pytest.mark.parametrize("task", ["mrpc", "clinc150"])
def test_what_the_page_says_in_short_is_what_was_measured(generator: ModuleType, task: str) -> None:
    result = generator.measured(generator.load())[task]
    change = generator.changes(result, "pae")
    said = (
        f"{100 * (1 - change['gflops']):.0f} % less computing, {100 * (1 - change['peak_mb']):.0f} % less memory, "
        f"{100 * (1 - change['mb_both']):.0f} % fewer bytes, {1 / change['wall_seconds']:.1f} times as fast"
    )
    assert said in " ".join(generator.PAGE.read_text("utf-8").split()), said


def test_on_clinc150_side_tuning_is_ahead_and_level_with_lora_in_one_place(generator: ModuleType) -> None:
    result = generator.measured(generator.load())["clinc150"]
    central = max(point["metric"] for points in result["central"] for point in points)
    for table in result["tables"].values():
        assert abs(central - table["quality"]["additive"]["mean"]) < 0.01
        assert table["quality"]["additive"]["mean"] > table["quality"][generator.PEER]["mean"] + 0.03
        assert table["quality"]["pae"]["mean"] > table["quality"][generator.PEER]["mean"] + 0.01


def test_side_tuning_takes_what_inference_takes(generator: ModuleType) -> None:
    found = generator.load()
    for model in [*found["memory"]["figures"].values(), *found["memory_opt-1.3b"]["figures"].values()]:
        for row in model["batches"]:
            peaks = row["peak_bytes"]
            assert peaks["ours"] <= 1.1 * peaks["plain"]
            assert 0.03 * peaks["lora"] < peaks["ours"] < 0.11 * peaks["lora"]
