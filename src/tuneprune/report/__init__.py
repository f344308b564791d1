"""What a run says about itself: typed record and proof, comparison tables, model card and page."""

from tuneprune.report.card import model_card
from tuneprune.report.page import write_report
from tuneprune.report.proof import (
    BytesOnDisk,
    Check,
    Generation,
    Loader,
    LogitProof,
    LoraResidue,
    Parameters,
    Proof,
)
from tuneprune.report.record import (
    BudgetRecord,
    EnvironmentRecord,
    MemoryRecord,
    MethodRecord,
    ModelRecord,
    RelativePerformance,
    RunRecord,
    ScoreRecord,
    SpeedRecord,
    TrainingRecord,
    Width,
)
from tuneprune.report.stored import write_atomically
from tuneprune.report.tables import html_table, markdown_table, rich_table

__all__ = [
    "BudgetRecord",
    "BytesOnDisk",
    "Check",
    "EnvironmentRecord",
    "Generation",
    "Loader",
    "LogitProof",
    "LoraResidue",
    "MemoryRecord",
    "MethodRecord",
    "ModelRecord",
    "Parameters",
    "Proof",
    "RelativePerformance",
    "RunRecord",
    "ScoreRecord",
    "SpeedRecord",
    "TrainingRecord",
    "Width",
    "html_table",
    "markdown_table",
    "model_card",
    "rich_table",
    "write_atomically",
    "write_report",
]
