"""README and `docs/reference/comparison.md` quote the protocols' JSON."""

from __future__ import annotations

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
        for one in [one for found in result["trials"].values() for one in found.values()]:
            rates = [float(value) for trial in one["trials"] for value in trial["settings"].values()]
            (best,) = one["settings"].values()
            assert len(rates) == 6 or min(rates) < float(best)
            assert len(rates) >= 3
        assert len(result["central"]) == len(settings["seeds"])
        for methods in result["partitions"].values():
            assert all(len(seeds) == len(settings["seeds"]) for seeds in methods.values())
            assert {"pae", generator.PEER} <= set(methods)


def test_what_the_readme_says_of_mrpc_is_what_was_measured(generator: ModuleType) -> None:
    change = generator.changes(generator.measured(generator.load())["mrpc"], "pae")
    text = generator.README.read_text("utf-8").split("<!-- end -->")[1]
    said = [
        f"{100 * (1 - change['gflops']):.0f} % less computing",
        f"{100 * (1 - change['mb_both']):.0f} % fewer bytes",
        f"{1 / change['wall_seconds']:.1f} times as fast",
    ]
    assert all(one in text for one in said), said
    assert change["peak_mb"] < 0.25
    assert change["mb_up"] < 0.15


def test_what_the_readme_says_of_clinc150_is_what_was_measured(generator: ModuleType) -> None:
    result = generator.measured(generator.load())["clinc150"]
    change = generator.changes(result, "pae")
    text = " ".join(generator.README.read_text("utf-8").split("<!-- end -->")[1].split())
    said = (
        f"{100 * (1 - change['gflops']):.0f} % less computing, {100 * (1 - change['mb_both']):.0f} % fewer bytes, "
        f"{100 * change['peak_mb']:.0f} % of the memory, {1 / change['wall_seconds']:.1f} times as fast"
    )
    assert f"is ahead of it, and level with LoRA in one place: {said}" in text, said
    central = max(point["metric"] for points in result["central"] for point in points)
    for table in result["tables"].values():
        assert abs(central - table["quality"]["pae"]["mean"]) < 0.01
        assert table["quality"]["pae"]["mean"] > table["quality"][generator.PEER]["mean"] + 0.03


def test_side_tuning_takes_what_inference_takes(generator: ModuleType) -> None:
    found = generator.load()
    for model in [*found["memory"]["figures"].values(), *found["memory_opt-1.3b"]["figures"].values()]:
        for row in model["batches"]:
            peaks = row["peak_bytes"]
            assert peaks["ours"] <= 1.1 * peaks["plain"]
            assert 0.03 * peaks["lora"] < peaks["ours"] < 0.11 * peaks["lora"]
