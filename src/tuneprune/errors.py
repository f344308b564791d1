"""Errors a user can fix; the command line turns each into one sentence and an exit status, mostly 2."""

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
"""What to do about errors of these names that no other file would help against."""


class TunePruneError(ValueError):
    """Something the user can fix. The message says what was asked, what is possible and what to do."""

    exit_status = 2


class ConfigError(TunePruneError):
    """A run file, an option or a combination of them that cannot work."""


class DataError(TunePruneError):
    """Data that is missing, unreadable, unusable, or shared between training and test."""


class UnsupportedModel(TunePruneError):
    """A model that no family file describes, or whose shape a space cannot treat."""


class UnsupportedExport(TunePruneError):
    """A target that cannot hold the shape that was asked for."""


class UnreachableBudget(TunePruneError):
    """A budget outside what the space can reach under its constraints."""


class PlanMismatch(TunePruneError):
    """A plan or checkpoint that belongs to another model, space or run."""


class TrainingDiverged(TunePruneError):
    """Too many steps in a row with a non-finite loss or gradient."""


class NonFinite(TunePruneError):
    """A decision or a result that would rest on numbers that are not finite."""


class ProofFailed(TunePruneError):
    """A written model that is not what the run computed: everything is on disk, and none of it should be used.

    Args:
        folder: the output folder of the run.
        failed: name and detail of every check that failed.
    """

    exit_status = 3

    def __init__(self, folder: object, failed: Mapping[str, str]) -> None:
        checks = "; ".join(f"{name} ({detail})" for name, detail in failed.items())
        super().__init__(
            f"The proof of {folder}/model FAILED: {checks}. Do not use this model. This is a bug: please report it with"
            f" {folder}/proof.json and {folder}/config.yaml."
        )


class CellsFailed(TunePruneError):
    """Some runs of a comparison failed, while the others are complete."""

    def __init__(self, failed: Mapping[str, str], folder: object) -> None:
        runs = "1 run" if len(failed) == 1 else f"{len(failed)} runs"
        listed = "\n".join(f"  {printable(name)}: {printable(sentence)}" for name, sentence in failed.items())
        super().__init__(
            f"{runs} of the comparison failed; logs are in {folder}/logs, and --resume tries again.\n{listed}"
        )


def suggest(name: str, known: Iterable[str]) -> str:
    """' Did you mean `x`?' when a known name is close to `name`, else an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean `{close[0]}`?" if close else ""


@contextmanager
def wrap_errors(
    what: str, kind: type[TunePruneError] = ConfigError, advice: str = "Download it again, or name another."
) -> Iterator[None]:
    """Turns whatever a library raises at a file from elsewhere into one error: `what`, the reason, and what to do.

    For calls into libraries only: which errors they raise at a file that nobody foresaw is in no contract of theirs.

    Args:
        advice: what to do where the file is at fault, and not this machine or the way to the hub.
    """
    try:
        yield
    except TunePruneError:
        raise
    except Exception as error:
        raise kind(f"{what}: {first_line(error).rstrip('.: ')}. {_remedy(error) or advice}") from error


def _remedy(error: Exception) -> str:
    """What to do about an error that is not a file's; empty for others.

    Libraries wrap errors in those of their own, so causes are looked at too.
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
    """What an error says first, no longer than a sentence; its kind where it says nothing."""
    said = next(iter(str(error).strip().splitlines()), "")
    if isinstance(error, KeyError):  # which says the key alone
        said = f"{said} is not known"
    return f"{said:.300}" or type(error).__name__


def printable(text: object) -> str:
    """Text for one line of a terminal: what would move the cursor, colour or hide it is written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
