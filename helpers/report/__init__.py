"""Reports of a run, from the files in its folder.

run_folder  the folder, read file by file; the arms in rows; how to repeat the run
page        report.html, one file that opens anywhere
card        chosen.md, the model card beside the chosen classifier
"""

from helpers.report.card import write_card
from helpers.report.page import write_report
from helpers.report.run_folder import COLUMNS, RunFolder, read_metrics, summary_rows

__all__ = ["COLUMNS", "RunFolder", "read_metrics", "summary_rows", "write_card", "write_report"]
