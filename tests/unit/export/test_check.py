"""Export targets are refused before any training."""

import pytest
from tiny import tiny_model

from tuneprune import export, families
from tuneprune.errors import UnsupportedExport
from tuneprune.structure import spaces
from tuneprune.structure.budget import Budget


@pytest.fixture
def space():
    model = tiny_model("llama")
    return spaces.build("width", families.describe(model), model)


def test_hugging_face_is_there(space):
    export.check(["hf"], space, Budget())


@pytest.mark.parametrize("target", ["gguf", "vllm"])
@pytest.mark.parametrize("per_layer", ["free", "uniform"])
def test_planned_targets_name_what_works(space, target, per_layer):
    with pytest.raises(UnsupportedExport, match=rf"`{target}` is not there yet. Use export: \[hf\]"):
        export.check(["hf", target], space, Budget(per_layer=per_layer))


def test_unknown_target_names_the_known_ones(space):
    with pytest.raises(UnsupportedExport, match=r"Unknown export `hff`; known exports are hf. Did you mean `hf`?"):
        export.check(["hff"], space, Budget())
