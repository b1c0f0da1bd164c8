"""From a run's folder to tables and the report."""

from mobillm_flower.reports.html import write_report
from mobillm_flower.reports.table import results_rows
from mobillm_flower.runs.events import RunRecord, read_run

__all__ = ["RunRecord", "read_run", "results_rows", "write_report"]
