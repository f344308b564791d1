"""ATP: tune and prune in one run.

A small generator re-decides the masks on calibration data while LoRA tunes on domain data under them. The decision
follows the weights, is then frozen, and LoRA on what was switched off goes to zero, so that it can be cut out exactly.

Paper: https://arxiv.org/abs/2412.14426 (symbols, equations, differences: docs/methods/atp.md).

Changed: Q/K dims are tied across rotary pairs, masks of the `disp` space have full length, the generator always runs in
float32 without dropout, and the final decision is deterministic and meets the budget instead of being the last noisy
sample. `decisions: on_budget`, `prior: taylor` and `compensate` go beyond the paper: see the fields; the preset
`atp-paper` does without them.
"""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from tuneprune.budget import Budget
from tuneprune.calibration.subject import Subject
from tuneprune.errors import ConfigError
from tuneprune.methods.atp.presets import ATP_PAPER
from tuneprune.methods.atp.search import AtpSearch
from tuneprune.methods.base import Method, Search


class Atp(Method):
    """Learn the masks with a generator while LoRA tunes, and decide on the way to the budget."""

    name = "atp"
    paper = "https://arxiv.org/abs/2412.14426"
    spaces = ("width", "head_dim", "disp", "residual", "depth")
    presets: ClassVar = {"atp-paper": ATP_PAPER}

    decision: Literal["dynamic", "static"] = Field(
        default="dynamic",
        description="`static` takes all generator steps before tuning starts, on the pretrained weights",
    )
    decisions: Literal["sampled", "on_budget"] = Field(
        default="on_budget",
        description="`sampled` draws masks with Gumbel noise and pulls them to the budget by a loss (the paper);"
        " `on_budget` keeps the best-scored units that fit the budget at every step",
    )
    prior: Literal["none", "magnitude", "taylor"] = Field(
        default="taylor", description="score added to the generator's logits: the start of the decision"
    )
    prior_batches: int = Field(default=16, ge=1, description="calibration batches for the Taylor prior")
    prior_momentum: float = Field(
        default=0.9,
        ge=0,
        le=1,
        description="how slowly the Taylor prior follows the weights: every revision adds the squared gate derivatives"
        " that it computes anyway; 1 keeps the score of the pretrained weights",
    )
    prior_scale: float = Field(default=1.0, ge=0, description="standard deviation of the prior among the logits")
    generator: Literal["transformer", "free"] = Field(
        default="transformer", description="`free`: plain logits (ablation)"
    )
    generator_size: int = Field(default=64, ge=4, description="features of a layer's token")
    generator_blocks: int = Field(default=2, ge=1)
    generator_heads: int = Field(default=4, ge=1)
    generator_learning_rate: float = Field(
        default=1e-3,
        gt=0,
        description="of AdamW; a fifth of it in the last fifth of control",
    )
    generator_clip: float = Field(default=1.0, gt=0, description="largest gradient norm of a generator step")
    control_share: float = Field(
        default=0.5, ge=0, le=1, description="share of the steps in which decisions are revised"
    )
    control_limit: int | None = Field(
        default=30, ge=1, description="largest number of steps in which decisions are revised, however long the run"
    )
    cut: Literal["freeze", "end"] = Field(
        default="freeze",
        description="when the model is cut: `freeze`, and the steps that are left tune the smaller model; or `end` (the"
        " paper), and they tune the masked model while the regulariser drives LoRA on removed units to zero",
    )
    gradual: bool = Field(
        default=True,
        description="`on_budget` decisions shrink from the whole model to the budget over the control phase",
    )
    gate_gradients: Literal["calibration", "training"] = Field(
        default="calibration",
        description="where the generator's gradients come from: a calibration batch of its own, or the backward pass of"
        " the tuning batch (`on_budget`), which costs nothing",
    )
    decision_every: int = Field(default=1, ge=1, description="steps between two revisions")
    temperature: float = Field(default=0.4, gt=0, description="T of the Gumbel-sigmoid")
    base: float = Field(default=3.0, description="b of the Gumbel-sigmoid: sampling starts from the unpruned model")
    budget_weight: float = Field(default=5.0, ge=0, description="alpha: weight of the budget loss (sampled decisions)")
    lora_aware: bool = Field(default=True, description="tuning masks the frozen weights only and leaves LoRA open")
    regulariser: Literal["lasso", "proximal", "linear_decay", "none"] = Field(default="linear_decay")
    lasso_weight: float = Field(default=0.3, ge=0, description="beta in the control phase")
    lasso_weight_frozen: float = Field(default=1000.0, ge=0, description="beta after the decision is frozen")
    proximal_weight: float = Field(default=5e4, ge=0, description="shrinkage per learning rate at the last step")
    decay_share: float = Field(default=0.5, gt=0, le=1, description="share of the frozen phase until LoRA is zero")

    compensate: bool = Field(
        default=True,
        description="at every decision, fold the contribution of removed units into the kept columns of the frozen"
        " linears that read them (least squares on calibration data)",
    )
    compensate_ridge: float = Field(default=0.01, gt=0, description="ridge over the mean second moment of kept inputs")

    @model_validator(mode="after")
    def _heads_divide(self) -> "Atp":
        if self.generator_size % self.generator_heads:
            raise ValueError(
                f"generator_size={self.generator_size} must be a multiple of generator_heads={self.generator_heads}"
            )
        return self

    @model_validator(mode="after")
    def _has_gradients(self) -> "Atp":
        if self.gate_gradients == "training" and (self.decisions == "sampled" or self.decision == "static"):
            raise ValueError(
                "gate_gradients=training needs decisions=on_budget and decision=dynamic, because a tuning step runs"
                " under hard masks; use gate_gradients=calibration"
            )
        return self

    def check_steps(self, steps: int) -> None:
        """Refuse a control phase that cannot be as long as it was asked for.

        Raises:
            ConfigError: a limit, other than the default, above the number of steps.
        """
        limit = self.control_limit
        if limit is not None and limit > steps and limit != Atp.model_fields["control_limit"].default:
            raise ConfigError(
                f"method.control_limit={limit} is more than the run's {steps} steps. Use at most {steps}, or raise"
                " tune.steps."
            )

    def begin(self, subject: Subject, budget: Budget) -> Search:
        """Start from the unpruned model (`sampled`) or from the prior's decision (`on_budget`)."""
        return AtpSearch(self, subject, budget)
