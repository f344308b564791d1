"""Errors that a user can fix; the command line prints each as one sentence and exits with its status, mostly 2."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

REMEDIES: dict[tuple[str, ...], str] = {
    ("GatedRepoError",): "Ask for access on its page of the hub, then log in: hf auth login.",
    ("RevisionNotFoundError",): "Check the name of the revision.",
    ("RepositoryNotFoundError",): "Check the spelling of the id; if it is private, log in first: hf auth login.",
    ("LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError", "ConnectError", "TimeoutException"): (
        "Check the connection to the hub (and HF_HUB_OFFLINE, which cuts it off), or name a folder on this machine."
    ),
    ("PermissionError",): "Make its files readable for this user.",
    ("MemoryError", "OutOfMemoryError"): "Free memory, or choose a smaller model.",
}
"""What to do about errors with these names, for which another file would not help."""


class TunePruneError(ValueError):
    """Something the user can fix. The message says what was asked for, what is possible and what to do."""

    exit_status = 2


class ConfigError(TunePruneError):
    """A run file, an option or a combination of options that cannot work."""


class DataError(TunePruneError):
    """Data that is missing, unreadable, unusable, or shared between training and test."""


class UnsupportedModel(TunePruneError):
    """A model that no family file describes, or whose shape a space cannot handle."""


class UnsupportedExport(TunePruneError):
    """An export target that cannot represent the requested shape."""


class UnreachableBudget(TunePruneError):
    """A budget outside the range that the space can reach under its constraints."""


class PlanMismatch(TunePruneError):
    """A plan or checkpoint that belongs to another model, space or run."""


class TrainingDiverged(TunePruneError):
    """Too many steps in a row with a non-finite loss or gradient."""


class NonFinite(TunePruneError):
    """A decision or a result that would depend on numbers that are not finite."""


class ProofFailed(TunePruneError):
    """A written model that is not what the run computed: the files are on disk, but should not be used.

    Args:
        folder: the output folder of the run.
        failed: detail of every check that failed, by its name.
    """

    exit_status = 3

    def __init__(self, folder: object, failed: Mapping[str, str]) -> None:
        checks = "; ".join(f"{name} ({detail})" for name, detail in failed.items())
        super().__init__(
            f"The proof of {folder}/model FAILED: {checks}. Do not use this model. This is a bug: please report it with"
            f" {folder}/proof.json and {folder}/config.yaml."
        )


class RunsFailed(TunePruneError):
    """Some runs of a comparison failed, while the others are complete."""

    def __init__(self, failed: Mapping[str, str], folder: object) -> None:
        runs = "1 run" if len(failed) == 1 else f"{len(failed)} runs"
        listed = "\n".join(f"  {printable(name)}: {printable(sentence)}" for name, sentence in failed.items())
        super().__init__(
            f"{runs} of the comparison failed; see the logs in {folder}/logs, and retry with --resume.\n{listed}"
        )


def suggest(name: str, known: Iterable[str]) -> str:
    """' Did you mean `x`?' when a known name is close to `name`, else an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean `{close[0]}`?" if close else ""


@contextmanager
def wrap_errors(
    what: str, kind: type[TunePruneError] = ConfigError, advice: str = "Download it again, or name another."
) -> Iterator[None]:
    """Turns whatever a library raises on an untrusted file into one error: `what`, the reason, and what to do.

    For calls into libraries only: they do not document which errors they raise on malformed files.

    Args:
        advice: what to do if the file is at fault, and not this machine or the connection to the hub.
    """
    try:
        yield
    except TunePruneError:
        raise
    except Exception as error:
        raise kind(f"{what}: {first_line(error).rstrip('.: ')}. {_remedy(error) or advice}") from error


def _remedy(error: Exception) -> str:
    """What to do about an error that a file did not cause; empty for other errors.

    Libraries wrap errors in their own, so the causes are examined too.
    """
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    kinds = {kind.__name__ for cause in causes for kind in type(cause).__mro__}
    found = next((remedy for names, remedy in REMEDIES.items() if kinds & set(names)), "")
    if "ImportError" in kinds:
        named = re.search(r"pip install [\w\[\].,-]+", " ".join(map(str, causes)))
        missing = next((cause.name for cause in causes if isinstance(cause, ImportError) and cause.name), None)
        command = named[0] if named else f"pip install {missing}" if missing else ""
        return f"Install it on this machine{f': {command}' if command else ''}."
    if not found and any("out of memory" in str(cause) for cause in causes):
        return REMEDIES["MemoryError", "OutOfMemoryError"]
    return found


def first_line(error: Exception) -> str:
    """The first line of an error's message, cut to the length of a sentence; the error's type if it has none."""
    said = next(iter(str(error).strip().splitlines()), "")
    if isinstance(error, KeyError):  # its message is the key alone
        said = f"{said} is not known"
    return f"{said:.300}" or type(error).__name__


def has_surrogates(text: str) -> bool:
    """Whether a text holds half of a surrogate pair, which no file can store and no tokenizer can read."""
    return not text.isascii() and re.search("[\ud800-\udfff]", text) is not None


def printable(text: object) -> str:
    """Text for one line of a terminal: characters that would move the cursor, colour or hide text are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
