"""Reports of a run, from the files in its folder.

run_folder  the folder, read file by file, and how to repeat the run
summary     the verdict at a glance, the arms in rows
page        report.html, one file that opens anywhere
card        chosen.md, the model card beside the chosen classifier
"""

from helpers.report.card import write_card
from helpers.report.page import write_report
from helpers.report.run_folder import RunFolder, read_metrics
from helpers.report.summary import COLUMNS, summary_rows

__all__ = [
    "COLUMNS",
    "RunFolder",
    "read_metrics",
    "summary_rows",
    "write_card",
    "write_report",
]
