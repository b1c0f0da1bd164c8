"""What holds for all tests."""

from __future__ import annotations

import pytest
from hypothesis.configuration import set_hypothesis_home_dir

LONGEST_FIRST = (
    "test_faults_processes",
    "test_deployment_example",
    "test_secure_sums_processes",
    "test_protocols",
    "test_bench",
    "test_several_machines",
    "test_continual_shown",
    "test_continual",
    "test_language_examples",
    "test_run_command",
)
"""Files that take minutes: they begin first, so that no process is left with one of them while the others are done."""


@pytest.fixture(scope="session", autouse=True)
def _hypothesis_writes_below_tmp_path(tmp_path_factory: pytest.TempPathFactory) -> None:
    set_hypothesis_home_dir(tmp_path_factory.mktemp("hypothesis"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order files as above; the others, and the tests within a file, stay as they are."""
    places = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))
