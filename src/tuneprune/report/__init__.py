"""What a run says about itself: typed record and proof, comparison tables, model card and page."""

from tuneprune.report.comparison.page import write_comparison
from tuneprune.report.comparison.record import CellRecord, ComparisonRecord, RowRecord
from tuneprune.report.comparison.tables import comparison_markdown, comparison_rich
from tuneprune.report.run.card import loading_line, model_card
from tuneprune.report.run.costs import MemoryUse, SpeedRecord
from tuneprune.report.run.page import write_report
from tuneprune.report.run.proof import (
    BytesOnDisk,
    Check,
    Generation,
    Loader,
    LogitProof,
    LoraResidue,
    Parameters,
    Proof,
)
from tuneprune.report.run.record import (
    BudgetRecord,
    EnvironmentRecord,
    MemoryRecord,
    MethodRecord,
    ModelRecord,
    ReferenceRecord,
    RelativePerformance,
    RunRecord,
    ScoreRecord,
    TrainingRecord,
    Width,
    load_scores,
)
from tuneprune.report.run.result_table import html_table, markdown_table, rich_table

__all__ = [
    "BudgetRecord",
    "BytesOnDisk",
    "CellRecord",
    "Check",
    "ComparisonRecord",
    "EnvironmentRecord",
    "Generation",
    "Loader",
    "LogitProof",
    "LoraResidue",
    "MemoryRecord",
    "MemoryUse",
    "MethodRecord",
    "ModelRecord",
    "Parameters",
    "Proof",
    "ReferenceRecord",
    "RelativePerformance",
    "RowRecord",
    "RunRecord",
    "ScoreRecord",
    "SpeedRecord",
    "TrainingRecord",
    "Width",
    "comparison_markdown",
    "comparison_rich",
    "html_table",
    "load_scores",
    "loading_line",
    "markdown_table",
    "model_card",
    "rich_table",
    "write_comparison",
    "write_report",
]
