"""What people brought that gave a wrong result, cost a device, or failed without help: each has its test."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]
CASES = {
    "01 class names that are numbers": "unit/tasks/test_labels.py::test_a_file_s_codes_are_classes_on_every_device",
    "03 no tokenizer in the folder": "unit/backbones/test_class_order.py::test_a_folder_without_a_tokenizer_is_refused",
    "04 CSV with line breaks in texts": (
        "unit/tasks/test_files.py::test_line_breaks_in_quotes_are_of_the_text_in_files_of_any_size"
    ),
    "05 class numbers far apart": (
        "property/test_labels_and_rows.py::test_rows_have_the_class_of_their_value_or_are_counted"
    ),
    "06 a prompt cut at its end": "unit/tasks/test_tokens.py::test_the_text_is_cut_and_never_the_prompt",
    "08 a test row costs the device": "unit/tasks/test_rows.py::test_bad_rows_cost_no_device",
    "09 fewer test rows than devices": "unit/tasks/test_rows.py::test_fewer_test_rows_than_devices",
    "10 files of a split that differ a little": (
        "unit/tasks/test_files.py::test_files_of_a_split_may_differ_where_nothing_is_named"
    ),
    "11 what load_data returns": "unit/tasks/test_rows.py::test_what_load_data_may_return",
    "12 weights that are not there": (
        "unit/backbones/test_model_folder.py::test_damage_is_a_sentence_that_names_the_file"
    ),
    "14 one empty text": "unit/tasks/test_tokens.py::test_a_row_without_a_token_costs_no_other",
    "16 new rows in a finished run": (
        "integration/test_started_again.py::test_new_rows_and_new_devices_are_learnt_as_if_they_had_been_there"
    ),
    "17 files to predict": "unit/tasks/test_files.py::test_what_training_reads_predict_reads",
    "19 why a file cannot be read": "unit/tasks/test_files.py::test_why_files_cannot_be_read",
    "22 a PEFT folder as backbone": "unit/backbones/test_model_folder.py::test_adapters_are_merged_onto_their_base",
    "22 a PEFT folder without its base": "unit/backbones/test_model_folder.py::test_adapters_without_their_base",
    "23 refused devices in the results": (
        "integration/test_took_no_part.py::test_the_table_and_the_exit_code_say_what_took_no_part"
    ),
    "24 class order of a trained head": (
        "unit/backbones/test_class_order.py::test_the_prediction_of_the_base_follows_the_names"
    ),
    "any files, labels and partitions": (
        "property/test_from_file_to_prediction.py::test_predict_gives_back_the_names_of_what_can_be_told_apart"
    ),
    "damaged data": "property/test_files.py::test_damaged_files_are_refused_or_read",
    "damaged models": "unit/backbones/test_model_folder.py::test_any_damage_to_a_file_is_an_error_of_ours_or_none",
    "damaged settings": "property/test_damaged_settings.py::test_a_damaged_file_is_read_or_named",
    "damaged runs": "property/test_damaged_runs.py::test_commands_read_what_is_damaged_or_refuse_it",
    "a damaged checkpoint": (
        "unit/server/test_checkpoints.py::test_a_checkpoint_with_one_changed_bit_is_refused_and_one_of_before_is_read"
    ),
}
"""By number and name of a case, the test of its outcome."""


@pytest.mark.parametrize("case", CASES)
def test_each_case_has_its_test(case: str) -> None:
    file, _, name = CASES[case].partition("::")
    tree = ast.parse((TESTS / file).read_text("utf-8"))
    assert name in {item.name for item in tree.body if isinstance(item, ast.FunctionDef)}
