"""`proof.json`: what was cut, and checks that nothing else changed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field

from tuneprune.errors import ProofFailed
from tuneprune.report.json_files import Section, Stored
from tuneprune.report.numbers import bytes_text, count_text, counted_text, percent_text, scientific_text
from tuneprune.report.run.costs import MemoryUse, SpeedRecord

# Largest relative difference of logits that rounding alone explains, by the precision of the arithmetic.
LOGIT_TOLERANCE = {"float64": 1e-9, "float32": 1e-5, "bfloat16": 3e-2, "float16": 5e-3}
# How far the kept share may be from the target when the size of the largest unit is not recorded.
SHARE_TOLERANCE = 0.005


class TableLatency(Section):
    """The time of a forward pass by the table of measured layers that a latency budget counts with."""

    what: str = Field(description="which time: phase, engine and batch size")
    dense_ms: float
    kept_ms: float
    largest_unit_ms: float = Field(description="the most time that one unit takes, counted like `largest_unit`")

    @property
    def share(self) -> float:
        """The pruned model's time over the dense model's."""
        return self.kept_ms / self.dense_ms


class Parameters(Section):
    """Parameter counts of the dense and the pruned model under both denominators; tied weights count once."""

    dense_total: int = Field(description="parameters of the dense model, embeddings included")
    kept_total: int = Field(description="parameters of the pruned model, embeddings included")
    share_total: float = Field(description="kept_total / dense_total")
    dense_prunable: int = Field(description="parameters of the dense model that the space can remove")
    kept_prunable: int = Field(description="those of them that were kept")
    share_prunable: float = Field(description="kept_prunable / dense_prunable")
    target: float = Field(description="the share the budget asked for")
    of: Literal["total", "prunable", "bytes", "latency"] = Field(description="the denominator the budget counts in")
    largest_unit: int | None = Field(
        default=None,
        description="parameters of the largest unit, times the units that `multiple_of` and `uniform` cut at once",
    )
    active_total: int | None = Field(
        default=None, description="most kept parameters that one token uses, if routers choose for each token"
    )
    latency: TableLatency | None = Field(default=None, description="times, if the budget counts them")
    budget_counts: Literal["total", "active"] = Field(
        default="total", description="whether the budget is about kept_total or about active_total"
    )

    @property
    def share(self) -> float:
        """The kept share, counted as the budget counts."""
        if self.latency is not None:
            return self.latency.share
        return self.share_prunable if self.of == "prunable" else self.share_total

    @property
    def tolerance(self) -> float:
        """How far `share` may be from `target`: one unit, as a share of what the budget counts."""
        if self.latency is not None:
            return self.latency.largest_unit_ms / self.latency.dense_ms
        dense = self.dense_prunable if self.of == "prunable" else self.dense_total
        return SHARE_TOLERANCE if self.largest_unit is None else self.largest_unit / max(dense, 1)

    @property
    def active_share(self) -> float | None:
        """The share that one token uses, counted as the budget counts; None if every token uses all."""
        if self.active_total is None:
            return None
        if self.of == "prunable":
            return (self.active_total - self.dense_total + self.dense_prunable) / self.dense_prunable
        return self.active_total / self.dense_total

    @property
    def is_met(self) -> bool:
        """Whether the budget was met, to within one unit."""
        share = self.active_share if self.budget_counts == "active" else self.share
        return share is not None and abs(share - self.target) <= self.tolerance + 1e-9


class LogitProof(Section):
    """One model against another, such as the one reloaded from disk, on the same tokens."""

    max_abs_diff: float
    max_rel_diff: float = Field(description="largest absolute difference over the largest absolute logit")
    dtype: str
    tokens: int

    @property
    def tolerance(self) -> float:
        """The largest relative difference that rounding in `dtype` explains."""
        return LOGIT_TOLERANCE.get(self.dtype.removeprefix("torch."), LOGIT_TOLERANCE["float32"])


class LoraResidue(Section):
    """How much LoRA was left on removed units before it was set to zero."""

    before_projection: float = Field(description="L2 norm of the LoRA update on removed units")
    relative: float = Field(description="that norm over the norm of all LoRA on units of the space")


class Generation(Section):
    """A greedy sample of the reloaded model."""

    prompt: str
    text: str
    cached_equals_uncached: bool = Field(description="the same tokens with and without the key/value cache")


class Loader(Section, populate_by_name=True):
    """How the exported folder is loaded."""

    name: str = Field(alias="class", description="model class that `from_pretrained` builds")
    needs_remote_code: bool
    host_model_type: str


class BytesOnDisk(Section):
    """Weight files of the dense and the pruned model, in bytes, both stored in the same precision."""

    dense: int
    pruned: int


@dataclass(frozen=True)
class Check:
    """One line of the proof; `passed` is None for a measurement that cannot fail."""

    name: str
    passed: bool | None
    detail: str


def failed(checks: Sequence[Check]) -> list[Check]:
    """The checks that failed."""
    return [check for check in checks if check.passed is False]


class Proof(Stored):
    """`proof.json`: parameters, logits, LoRA residue, generation, loader, bytes, speed and memory of one export."""

    what: ClassVar[str] = "proof"

    parameters: Parameters
    logits: LogitProof
    cut: LogitProof | None = Field(
        default=None, description="the cut model against the masked one in memory, before the steps that follow"
    )
    rounding: LogitProof | None = Field(
        default=None, description="the masked model with its weights rounded to the files' precision against unrounded"
    )
    parameters_counted: int | None = Field(default=None, description="parameters of the reloaded model, tied ones once")
    lora_residue: LoraResidue | None = None
    generation: Generation | None = None
    loader: Loader
    bytes_on_disk: BytesOnDisk
    tokenizer_agrees: bool | None = Field(
        default=None, description="the exported tokenizer encodes a probe text as before"
    )
    speed: SpeedRecord | None = Field(default=None, description="dense and pruned, alternating in one process")
    memory: MemoryUse | None = Field(default=None, description="dense and pruned, each in a fresh process")
    exports: dict[str, dict[str, Any]] = Field(
        default={}, description="result of `export.convert` for every further target, by label"
    )

    def checks(self) -> list[Check]:
        """All checks and measurements, in reading order."""
        checks = [self._budget_check(), self._logit_check(), self._loader_check(), self._disk_check()]
        if self.cut is not None:
            checks.insert(1, _equal("Cut model equals the masked model", self.cut))
        if self.rounding is not None:
            said = scientific_text(self.rounding.max_rel_diff)
            detail = f"changes logits by up to {said} of the largest one, on {self.rounding.tokens} tokens"
            checks.append(Check(f"Rounding weights to {self.rounding.dtype}", None, detail))
        if self.parameters_counted is not None:
            counted, expected = self.parameters_counted, self.parameters.kept_total
            detail = f"{counted:,} on disk, {expected:,} in the plan"
            checks.append(Check("Saved model has as many parameters as planned", counted == expected, detail))
        if self.generation is not None:
            same = self.generation.cached_equals_uncached
            detail = (
                "the same tokens with and without the cache" if same else "different tokens with and without the cache"
            )
            checks.insert(2, Check("Generates the same with and without key/value cache", same, detail))
        if self.tokenizer_agrees is not None:
            detail = "the same tokens as before" if self.tokenizer_agrees else "different tokens than before"
            checks.append(Check("Exported tokenizer encodes a probe text as before", self.tokenizer_agrees, detail))
        if self.lora_residue is not None:
            residue = self.lora_residue
            detail = (
                f"{percent_text(residue.relative, 2)} of the LoRA update's norm "
                f"({scientific_text(residue.before_projection)}) was set to zero before the cut"
            )
            checks.append(Check("LoRA left on removed units", None, detail))
        return checks

    @property
    def is_ok(self) -> bool:
        """Whether no check failed."""
        return not failed(self.checks())

    def failure(self, folder: object, *, was_cut: bool = True) -> ProofFailed | None:
        """The checks that failed, as an error; None if none did.

        Args:
            folder: the output folder of the run, for the message.
            was_cut: whether the model was pruned; otherwise it was only tuned, and the proof is about its files.
        """
        found = failed(self.checks() if was_cut else self.checks_of_files())
        return ProofFailed(folder, {check.name: check.detail for check in found}) if found else None

    def checks_of_files(self) -> list[Check]:
        """The checks for a model that was tuned but not pruned: without those of the budget and of sizes."""
        about_the_cut = {self._budget_check().name, self._disk_check().name}
        compared = self._logit_check()
        named = {compared.name: "Reloaded model equals the tuned model"}
        return [
            Check(named.get(check.name, check.name), check.passed, check.detail)
            for check in self.checks()
            if check.name not in about_the_cut
        ]

    def _budget_check(self) -> Check:
        parameters = self.parameters
        detail = (
            f"{percent_text(parameters.share, 2)} of {counted_text(parameters.of)} kept, "
            f"{percent_text(parameters.target, 2)} requested"
        )
        if parameters.latency is not None:
            times = parameters.latency
            detail += (
                f": {times.kept_ms:.4g} of {times.dense_ms:.4g} ms by the latency table ({times.what});"
                f" the largest unit takes {times.largest_unit_ms:.2g} ms;"
                f" {percent_text(parameters.share_total, 2)} of all parameters are kept"
            )
        elif parameters.largest_unit is not None:
            unit = count_text(parameters.largest_unit)
            detail += f"; the largest unit has {unit} parameters ({percent_text(parameters.tolerance, 2)})"
        if parameters.active_share is not None:
            detail += f"; one token uses {percent_text(parameters.active_share, 2)}"
        if parameters.budget_counts == "active":
            return Check("Budget met within one unit, counting what one token uses", parameters.is_met, detail)
        return Check("Budget met within one unit", parameters.is_met, detail)

    def _logit_check(self) -> Check:
        compared = "masked" if self.cut is None else "final"  # earlier proofs have one comparison for both
        return _equal(f"Reloaded model equals the {compared} model", self.logits)

    def _loader_check(self) -> Check:
        loader = self.loader
        code = "needs trust_remote_code=True" if loader.needs_remote_code else "no remote code"
        return Check(
            "Loaded from disk in a fresh process",
            True,
            f"as {loader.name} ({loader.host_model_type}); {code}",
        )

    def _disk_check(self) -> Check:
        sizes = self.bytes_on_disk
        detail = f"{bytes_text(sizes.dense)} dense, {bytes_text(sizes.pruned)} pruned"
        is_cut = self.parameters.kept_total < self.parameters.dense_total
        return Check("Smaller on disk", sizes.pruned < sizes.dense if is_cut else None, detail)


def _equal(name: str, logits: LogitProof) -> Check:
    """Whether two models give the same logits up to rounding; NaN fails."""
    detail = (
        f"largest relative difference {scientific_text(logits.max_rel_diff)}, absolute "
        f"{scientific_text(logits.max_abs_diff)}, over {logits.tokens} tokens in {logits.dtype} "
        f"(allowed: {scientific_text(logits.tolerance)})"
    )
    return Check(name, logits.max_rel_diff <= logits.tolerance, detail)
