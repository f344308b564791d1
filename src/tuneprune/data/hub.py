"""Hub data sets as numbered records."""

from tuneprune.data.bad_records import error_text, name_list
from tuneprune.data.json_files import SPLIT_NAMES, Numbered
from tuneprune.data.tables import label_names, name_labels
from tuneprune.errors import DataError


def read_hub(name: str, split: str) -> Numbered:
    """The records of a hub data set `owner/name` or `owner/name:subset`; class labels as their names.

    Raises:
        DataError: unreachable, unknown, or without such a split.
    """
    import datasets  # slow to import, and only needed here
    from datasets.exceptions import DatasetsError

    repository, _, subset = name.partition(":")
    try:
        known = datasets.get_dataset_split_names(repository, subset or None)
        found = next((candidate for candidate in SPLIT_NAMES[split] if candidate in known), None)
        if found is None:
            raise DataError(f"{name}: has no split `{split}` (found: {name_list(known)}). Name another with `split`.")
        rows = datasets.load_dataset(repository, subset or None, split=found)
    except DataError:
        raise
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise DataError(
            f"{name}: the hub data set cannot be loaded ({error_text(error)}). Check its name and the network,"
            " or download it and name the file with `path`."
        ) from None
    labels = label_names(rows.features)
    records = list(enumerate((name_labels(row, labels) for row in rows), start=1))
    if not records:
        raise DataError(f"{name}: the split `{split}` has no records. Name another with `split`.")
    return records
