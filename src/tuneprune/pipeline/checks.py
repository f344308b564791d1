"""Checks of a run file against the model, the data and the machine, which no section of it can make alone.

Every `check_` function raises a ConfigError that names what is possible.
"""

from typing import TypeVar

import torch
from accelerate.tracking import get_available_trackers
from transformers import PreTrainedTokenizerBase

from tuneprune import evaluate
from tuneprune.compress.compensate import KINDS as COMPENSATED
from tuneprune.config import RecoverConfig, RunConfig
from tuneprune.data import Data
from tuneprune.errors import ConfigError
from tuneprune.report.numbers import bytes_text
from tuneprune.structure.architecture import Architecture
from tuneprune.structure.space import PruningSpace
from tuneprune.system.environment import free_memory
from tuneprune.train import TuneConfig, lora_parts
from tuneprune.train.config import ALL_LINEAR

Settings = TypeVar("Settings", RunConfig, RecoverConfig)


def check_lengths(config: RunConfig | RecoverConfig, context: int) -> None:
    """Refuse rows longer than the model's context."""
    if config.tune.max_length > context:
        raise ConfigError(
            f"tune.max_length={config.tune.max_length} is longer than the model's context of {context} tokens;"
            f" use at most {context}."
        )


def check_memory(config: RunConfig | RecoverConfig, count: int) -> None:
    """Refuse to tune more parameters than this machine has memory for: weight, gradient and two moments in float32.

    Args:
        count: parameters of the largest model that is tuned.
    """
    options = config.recover or config.tune
    if options.train == "lora":
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    needed, there = 16 * count, free_memory(device)
    if needed > there:
        raise ConfigError(
            f"train={options.train} needs {bytes_text(needed)} for weights, gradients and optimiser states of {count:,}"
            f" parameters, and {bytes_text(there)} are free. Use train=lora, or a machine with more memory."
        )


def check_compensation(config: RunConfig, space: PruningSpace) -> None:
    """Refuse compensation on a space in which no linear loses inputs only."""
    if config.compensate.name != "none" and not any(group.kind in COMPENSATED for group in space.groups):
        raise ConfigError(
            f"compensate={config.compensate.name} needs linears that lose inputs and nothing else, and space"
            f" `{space.name}` has none. Use compensate: none, or space width, head_dim or disp."
        )


def check_counted(config: RunConfig) -> None:
    """Refuse a budget of bytes for a method whose files are larger than its budget."""
    if config.budget.of == "bytes" and not config.method.is_sized_on_disk:
        raise ConfigError(
            f"budget.of=bytes is about the weight files, but method `{config.method.title}` with these options meets"
            " its budget by what one token uses. Use budget.of=total, or options that count all parameters."
        )


def check_answers(tasks: list[evaluate.LoadedTask], context: int) -> None:
    """Refuse summaries that leave no room for a prompt."""
    for task in tasks:
        if task.kind == "summary" and task.max_new_tokens >= context:
            raise ConfigError(
                f"evaluate: {task.name} asks for max_new_tokens={task.max_new_tokens}, which leaves no room for a"
                f" prompt in a context of {context} tokens. Lower it, or choose a model with a longer context."
            )


def check_tokens(
    tokenizer: PreTrainedTokenizerBase, data: Data, tasks: list[evaluate.LoadedTask], vocabulary: int
) -> None:
    """Refuse a tokenizer that does not fit the model, the training data or the test items."""
    documents = [*data.train, *data.calibration]
    largest = max(max(document.input_ids, default=0) for document in documents)
    if largest >= vocabulary:
        raise _without_embedding(tokenizer, largest, vocabulary, "the data")
    check_test_tokens(tokenizer, tasks, vocabulary)


def check_test_tokens(
    tokenizer: PreTrainedTokenizerBase, tasks: list[evaluate.LoadedTask], vocabulary: int | None
) -> None:
    """Refuse a tokenizer that does not fit the model or the test items.

    Args:
        vocabulary: the number of embeddings, None if it is unknown.

    Raises:
        ConfigError: a token that the model has no embedding for, or a text without tokens.
    """
    test = [example for task in tasks for example in task.examples]
    sample = test[0].prompt + test[0].completion
    if not _ids(tokenizer, sample):
        raise ConfigError(
            f"model: the tokenizer ({type(tokenizer).__name__}) finds no token in the text {sample[:40]!r}."
            " Use the tokenizer that belongs to the model."
        )
    if vocabulary is None or max(tokenizer.get_vocab().values()) < vocabulary:
        return
    ends = [token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if isinstance(token, int)]
    for example in test:
        texts = (example.prompt, example.completion, *example.choices)
        largest = max([*ends, *(token for text in texts for token in _ids(tokenizer, text))])
        if largest >= vocabulary:
            raise _without_embedding(tokenizer, largest, vocabulary, "a test item")


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _without_embedding(tokenizer: PreTrainedTokenizerBase, token: int, vocabulary: int, where: str) -> ConfigError:
    named = tokenizer.convert_ids_to_tokens(token)
    return ConfigError(
        f"model: in {where} the tokenizer gives token {token} (`{named}`), but the model has only {vocabulary}"
        " embeddings. Use the tokenizer that belongs to the model; or, if tokens were added to it, a model"
        " that was tuned with embeddings for them (resize_token_embeddings)."
    )


def check_shares(config: RunConfig | RecoverConfig, num_processes: int) -> None:
    """Refuse a batch that the processes cannot share equally."""
    for name, section in (("tune", config.tune), ("recover", config.recover)):
        if section is not None and section.batch_size % num_processes:
            raise ConfigError(
                f"{name}.batch_size={section.batch_size} cannot be shared by {num_processes} processes;"
                " use a multiple of their number."
            )


def check_targets(config: RunConfig | RecoverConfig, architecture: Architecture) -> None:
    """Refuse LoRA on linears that the model does not have, and on only some linears if the method decides by LoRA."""
    for section in (config.tune, config.recover):
        if section is not None:
            lora_parts(architecture, section.lora)
    is_partial = config.tune.lora.target_modules != ALL_LINEAR
    if isinstance(config, RunConfig) and config.method.decides_by_lora and is_partial:
        raise ConfigError(
            f"tune.lora.target_modules: method `{config.method.title}` decides by what LoRA learns, so every linear"
            " needs it. Leave target_modules out, or choose another method, such as atp."
        )


def in_steps(config: Settings, data: Data) -> Settings:
    """The run file with its epochs as steps.

    An epoch has as many rows as the first one with seed 0, so that all seeds of a comparison take equal steps.
    """
    sections: dict[str, TuneConfig | None] = {"tune": config.tune, "recover": config.recover}
    timed = {name: section for name, section in sections.items() if section is not None and section.epochs is not None}
    if not timed:
        return config
    rows = rows_per_epoch(data)
    return config.model_copy(update={name: section.on(rows) for name, section in timed.items()})


def lengths_in_words(asked: RunConfig, resolved: RunConfig, data: Data) -> str:
    """The number of steps of each tuning of a run."""
    lengths: list[str] = []
    for before, after in zip((asked.tune, asked.recover), (resolved.tune, resolved.recover), strict=True):
        if before is not None and after is not None:
            rows = "" if before.epochs is None else f" ({before.epochs:g} epochs of {rows_per_epoch(data)} rows)"
            lengths.append(f"{after.steps} steps of {after.batch_size} rows{rows}")
    return ", then ".join(lengths)


def rows_per_epoch(data: Data) -> int:
    """Packed rows of the training data."""
    return len(data.stream(data.train_part, batch_size=1, seed=0))


def check_trackers(names: list[str]) -> None:
    """Refuse trackers that would fail once training starts."""
    available = [str(tracker) for tracker in get_available_trackers()]
    for name in names:
        if name not in available:
            listed = ", ".join(available) or "none"
            raise ConfigError(
                f"tune.trackers: `{name}` is not installed or not known; available here: {listed}."
                " Install it, or leave it out."
            )
