"""Speed and memory of the dense and the pruned model, and sentences about them."""

from collections.abc import Sequence

from pydantic import Field

from tuneprune.report.json_files import OpenSection, Section
from tuneprune.report.numbers import bytes_text, count_text


class Spread(Section):
    """A repeated measurement: median and extremes."""

    median: float
    low: float
    high: float

    @property
    def text(self) -> str:
        """A ratio as text: the median and, in brackets, the extremes."""
        return f"{self.median:.2f} times ({self.low:.2f} to {self.high:.2f})"


class TwinSpeed(Section):
    """A twin in one setting: tokens per second, and ratios to the dense and the pruned model in the same rounds."""

    speed: Spread
    ratio: Spread
    over_pruned: Spread


class SpeedSetting(OpenSection):
    """Tokens per second of both models in one setting; ratio = pruned over dense, above 1 = faster."""

    batch_size: int
    phase: str
    dense: Spread
    pruned: Spread
    ratio: Spread
    twins: dict[str, TwinSpeed] = Field(default_factory=dict)

    @property
    def text(self) -> str:
        """The setting's name in a sentence."""
        return f"{self.phase} at batch {self.batch_size}"


class TwinRecord(Section):
    """A stock model with random weights and the pruned model's size, with the same widths in all layers."""

    parameters: int
    widths: dict[str, int] = Field(description="units that every layer keeps, by kind")
    multiple_of: int = Field(description="the step that divides all widths")

    @property
    def text(self) -> str:
        """The twin's widths in a sentence."""
        step = f" in multiples of {self.multiple_of}" if self.multiple_of > 1 else ""
        return f"uniform widths{step}"


class SpeedRecord(OpenSection):
    """Speed before and after, all models measured in turns on the same machine."""

    device: str
    dtype: str
    threads: int
    prompt_tokens: int
    new_tokens: int
    repeats: int
    settings: list[SpeedSetting]
    twins: dict[str, TwinRecord] = Field(
        default_factory=dict, description="measured with a ragged model: the speed that uniform widths would have"
    )
    twins_missing: str | None = Field(default=None, description="why there is no twin of a ragged model")
    matrices: int | None = Field(default=None, description="weight matrices of the pruned model")
    odd_matrices: int | None = Field(default=None, description="those with a side that is not a multiple of 8")
    verdict: str | None = Field(
        default=None, description="in which settings the pruned model is faster, and why not in others"
    )


class PeakRecord(Section):
    """Peak memory of a process up to the end of a generation at this batch size."""

    batch_size: int
    bytes: int


class ModelMemory(Section):
    """Memory of a fresh process that loads a model, prefills and decodes; resident on a CPU, allocated on a GPU."""

    weight_bytes: int
    cache_bytes_per_token: int = Field(description="keys and values of one token of one row, all layers")
    libraries_bytes: int = Field(description="the peak before the model was loaded")
    loaded_bytes: int = Field(description="the peak after the model was loaded")
    peaks: list[PeakRecord]


class MemoryUse(Section):
    """Memory of the dense and of the pruned model; None for one that did not run, and `problem` says why."""

    device: str
    dtype: str
    prompt_tokens: int
    new_tokens: int
    dense: ModelMemory | None = None
    pruned: ModelMemory | None = None
    problem: str | None = None


def speed_sentence(speed: SpeedRecord) -> str:
    """In which settings the pruned model is faster or not, and why; a gain within the spread does not count."""
    if not speed.settings:
        return "Nothing was measured."
    not_faster = [setting for setting in speed.settings if setting.ratio.low <= 1]
    if not not_faster:
        ratios = [setting.ratio.median for setting in speed.settings]
        return f"The pruned model is faster in every setting: {min(ratios):.2f} to {max(ratios):.2f} times."
    where = "; ".join(f"{setting.text}, {setting.ratio.text}" for setting in not_faster)
    which = f"in {len(not_faster)} of {len(speed.settings)} settings"
    return " ".join([f"The pruned model is not clearly faster {which}: {where}.", *_reasons(speed, not_faster)])


def _reasons(speed: SpeedRecord, not_faster: Sequence[SpeedSetting]) -> list[str]:
    """Why the pruned model is not faster, as far as the twins show it."""
    if not speed.twins:
        general = (
            "Fewer parameters alone do not make a model faster: small matrices, ragged widths and Python overhead can"
            " cancel the gain."
        )
        missing = f"Uniform widths were not measured for comparison: {speed.twins_missing}"
        return [general, *([missing] if speed.twins_missing else [])]
    by_widths = [s for s in not_faster if any(twin.over_pruned.low > 1 for twin in s.twins.values())]
    by_size = [s for s in not_faster if s not in by_widths and _gains_little(s)]
    unclear = [s for s in not_faster if s not in by_widths and s not in by_size]
    reasons: list[str] = []
    if by_widths:
        reasons.append(
            "The uneven widths are the reason: in the same rounds, stock models with as many parameters were faster"
            f" ({_twins_text(speed, by_widths)}). To get such widths, set budget.per_layer=uniform and"
            " budget.multiple_of."
        )
        if speed.odd_matrices:
            reasons.append(
                f"{speed.odd_matrices} of {speed.matrices} matrices have a side that is not a multiple of 8."
            )
    if by_size:
        reasons.append(
            "The size is the reason: stock models with as many parameters are not faster either"
            f" ({_twins_text(speed, by_size)}), so most of the time goes into work that does not shrink with the"
            " weights, such as launching operations."
        )
    if unclear:
        reasons.append(
            "The spread is too wide to tell why; stock models with as many parameters:"
            f" {_twins_text(speed, unclear)}. Measure again on an idle machine."
        )
    return reasons


def _gains_little(setting: SpeedSetting) -> bool:
    """Whether neither the pruned model nor a twin is more than 10 % faster."""
    return all(ratio.median <= 1.1 for ratio in (setting.ratio, *(twin.ratio for twin in setting.twins.values())))


def _twins_text(speed: SpeedRecord, settings: Sequence[SpeedSetting]) -> str:
    """The twins' speeds over the dense model's, in these settings."""
    return "; ".join(
        f"{setting.text}, "
        + " and ".join(f"{speed.twins[name].text} {twin.ratio.text}" for name, twin in setting.twins.items())
        for setting in settings
    )


def twins_sentence(speed: SpeedRecord) -> str:
    """Which stock models were measured with a ragged one; empty without any."""
    if not speed.twins:
        return ""
    sizes = " and ".join(f"{count_text(twin.parameters)} with {twin.text}" for twin in speed.twins.values())
    return f"Measured in the same rounds: stock models with random weights, {sizes}."


def memory_rows(memory: MemoryUse | None) -> list[tuple[str, int, int]]:
    """Names, and bytes of the dense and of the pruned model; empty if one of them did not run."""
    if memory is None or memory.dense is None or memory.pruned is None:
        return []
    dense, pruned = memory.dense, memory.pruned
    return [
        (f"Weights in memory ({memory.dtype})", dense.weight_bytes, pruned.weight_bytes),
        ("Key/value cache, one token", dense.cache_bytes_per_token, pruned.cache_bytes_per_token),
        *(
            (f"Peak of a process, batch {one.batch_size}", one.bytes, other.bytes)
            for one, other in zip(dense.peaks, pruned.peaks, strict=True)
        ),
    ]


def memory_sentence(memory: MemoryUse | None) -> str:
    """How memory was measured, or why not; empty if it was not asked for."""
    if memory is None:
        return ""
    if memory.dense is None or memory.pruned is None:
        return f"Memory was not measured: {memory.problem}"
    libraries = bytes_text(memory.dense.libraries_bytes)
    return (
        f"Each peak is that of a fresh process on {memory.device} that loads the model, reads"
        f" {memory.prompt_tokens} tokens and generates {memory.new_tokens}; its libraries alone take {libraries}."
    )
