"""From a run's folder to tables and the report."""

from mobillm_flower.reports.html import write_report
from mobillm_flower.reports.table import results_rows

__all__ = ["results_rows", "write_report"]
