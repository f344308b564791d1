"""Files are read like Python would import them, or refused."""

import pytest

from tuneprune.cli.source_file import SourceFile, source_of

TEXT = '''"""What the file is."""
from pydantic import BaseModel, Field
from tuneprune.methods.base import Method as Base

raise RuntimeError("this file is only read")
NUMBER = 3
COMPUTED = NUMBER + 1


class Ours(Base):
    """Ours."""

    name = "ours"
    presets: ClassVar = {"three": {"size": NUMBER}}
    size: int = Field(default=2, ge=1)
    made: int = COMPUTED

    def size_on_disk(self): ...


class Small(Ours):
    size: int = 1


def remove(block):
    """Removes."""


BY_NAME = {"ours": Ours, "remove": remove}
'''


@pytest.fixture
def file(tmp_path):
    (tmp_path / "ours.py").write_text(TEXT)
    return SourceFile(tmp_path / "ours.py")


def test_docstrings_and_constants(file):
    assert file.__doc__ == "What the file is."
    assert file["BY_NAME"]["remove"].__doc__ == "Removes."
    assert file["BY_NAME"]["ours"] is file["Ours"]
    assert file["NUMBER"] == 3
    assert [kind.__name__ for kind in file.classes()] == ["Ours", "Small"]


def test_classes_inherit_constants(file):
    assert file["Small"].__doc__ is None
    assert file["Small"].presets == {"three": {"size": 3}}
    assert file["Ours"].model_fields["size"].default == 2
    assert file["Small"].needs_weight_gradients is False  # of the Method that was imported
    assert issubclass(file["Small"], source_of("tuneprune.methods.base")["Method"])


@pytest.mark.parametrize("name", ["COMPUTED", "BaseModel", "nowhere"])
def test_what_has_to_run_has_no_value(name, file):
    with pytest.raises(ValueError, match=r"malformed|no `"):
        file[name]
    assert not hasattr(file["Ours"], "made")
