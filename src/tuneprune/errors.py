"""Errors a user can fix; the command line turns each into one sentence and an exit status, mostly 2."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager


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
def reading(
    what: str, kind: type[TunePruneError] = ConfigError, advice: str = "Download it again, or name another."
) -> Iterator[None]:
    """Turns whatever a library raises at a file from elsewhere into one error: `what`, the reason, and `advice`.

    For calls into libraries only: which errors they raise at a file that nobody foresaw is in no contract of theirs.
    """
    try:
        yield
    except TunePruneError:
        raise
    except Exception as error:
        raise kind(f"{what}: {first_line(error).rstrip('.: ')}. {advice}") from error


def first_line(error: Exception) -> str:
    """What an error says first, no longer than a sentence; its kind where it says nothing."""
    said = next(iter(str(error).strip().splitlines()), "")
    return f"{said:.300}" or type(error).__name__


def printable(text: object) -> str:
    """Text for one line of a terminal: what would move the cursor, colour or hide it is written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
