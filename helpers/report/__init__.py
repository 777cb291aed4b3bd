"""What came of a run, told to people, from the files in its folder.

record     the folder, read file by file, and how to repeat the run
summary    the verdict in a line, the arms in rows
page       report.html, one file that opens anywhere
card       chosen.md, the model card beside the chosen classifier
"""

from helpers.report.card import escape_markdown, write_card
from helpers.report.page import write_report
from helpers.report.record import Record, failure, make_command, papermill_commands, read_metrics
from helpers.report.summary import COLUMNS, describe_verdict_briefly, summary_rows

__all__ = [
    "COLUMNS",
    "Record",
    "describe_verdict_briefly",
    "escape_markdown",
    "failure",
    "make_command",
    "papermill_commands",
    "read_metrics",
    "summary_rows",
    "write_card",
    "write_report",
]
