"""From a run's folder to tables and the report."""

from mobillm_flower.reports.html import write_report
from mobillm_flower.reports.table import not_used, results_rows

__all__ = ["not_used", "results_rows", "write_report"]
