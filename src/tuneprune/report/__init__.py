"""Records and proofs of runs as typed JSON files, and the tables, model cards and pages made from them."""

from tuneprune.report.comparison.page import write_comparison
from tuneprune.report.comparison.record import ComparisonRecord
from tuneprune.report.comparison.tables import comparison_markdown, comparison_rich
from tuneprune.report.run.card import loading_line, model_card
from tuneprune.report.run.page import write_report
from tuneprune.report.run.proof import Proof
from tuneprune.report.run.record import ReferenceRecord, RunRecord, ScoreRecord, Width, load_scores
from tuneprune.report.run.result_table import markdown_table, rich_table

__all__ = [
    "ComparisonRecord",
    "Proof",
    "ReferenceRecord",
    "RunRecord",
    "ScoreRecord",
    "Width",
    "comparison_markdown",
    "comparison_rich",
    "load_scores",
    "loading_line",
    "markdown_table",
    "model_card",
    "rich_table",
    "write_comparison",
    "write_report",
]
