"""`tuneprune compress` works without loading the model: same files as from memory, and none half written."""

import pytest
import torch
from helpers import tiny_runs
from helpers.sweeps import quick_where
from helpers.tiny import CASES, MIXTURES, layers_for, random_masks, routed_plan, tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaForCausalLM, logging

from tuneprune import export, families
from tuneprune.compress import compress, streaming
from tuneprune.errors import ConfigError, PlanMismatch
from tuneprune.export.shards import write_file
from tuneprune.model.loading import load_config, load_model, load_tokenizer
from tuneprune.pipeline import stages
from tuneprune.structure import spaces
from tuneprune.structure.edits import Bias, Rotate
from tuneprune.structure.plan import Plan
from tuneprune.system.progress import Progress
from tuneprune.system.signals import Stopped

logging.disable_progress_bar()
ONE, MANY = "5GB", "10KB"
SHAPES = [(*case, False, torch.bfloat16, MANY) for case in CASES]
SHAPES += [(*case, True, torch.float32, ONE) for case in CASES if case[1] in ("width", "experts")]  # stock ones


def save(folder, variant, dtype=torch.bfloat16, shard=MANY, **changes):
    model = tiny_model(variant, dtype=dtype, **changes)
    model.save_pretrained(folder, max_shard_size=shard)
    tiny_runs.letter_tokenizer().save_pretrained(folder)
    return folder


def space_of(model, name):
    architecture = families.describe(model)
    return architecture, spaces.build(name, architecture, model)


def make_plan(folder, name, *, uniform=False, edits=None):
    """A random plan, with what `edits` adds to it, saved next to the model."""
    architecture, space = space_of(load_model(str(folder), None, torch.device("cpu")), name)
    plan = Plan.from_masks(random_masks(space, uniform=uniform), space)
    plan = edits(plan, space, architecture) if edits else plan
    plan = Plan(plan.edits, plan.space, {"space": name})
    plan.save(folder.with_name("plan"))
    return folder.with_name("plan")


def in_memory(folder, plan, out, dtype, shard=ONE):
    """The folder written by loading in float32, cutting and rounding."""
    dense = load_model(str(folder), None, torch.device("cpu"))
    plan = Plan.load(plan)
    small = compress(dense, *space_of(dense, plan.provenance["space"]), plan).to(dtype)
    export.write(small, load_tokenizer(str(folder), load_config(str(folder))), out, max_shard_size=shard)
    return out


def forbid_loading(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the dense model was loaded")

    monkeypatch.setattr(stages.loading, "load_model", refuse)


def streamed(folder, plan, out, monkeypatch, shard=ONE):
    with monkeypatch.context() as patch:
        forbid_loading(patch)
        stages.compress_model(str(folder), plan, out, max_shard_size=shard)
    return out


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def tensors(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def assert_same_tensors(one, other):
    one, other = tensors(one), tensors(other)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize(
    ("variant", "space_name", "uniform", "dtype", "shard"),
    quick_where(lambda variant, space, *_: space == "head_dim" or variant in ("llama", "mixtral"), SHAPES),
)
def test_files_are_those_of_the_cut_in_memory(variant, space_name, uniform, dtype, shard, tmp_path, monkeypatch):
    folder = save(tmp_path / "dense", variant, dtype, MANY if uniform else ONE, **layers_for(space_name))
    plan = make_plan(folder, space_name, uniform=uniform)
    monkeypatch.setattr(streaming, "RUN_BYTES", 500)  # several runs of rows for most tensors
    expected = in_memory(folder, plan, tmp_path / "memory", dtype, shard)
    found = streamed(folder, plan, tmp_path / "streamed", monkeypatch, shard)
    assert contents(found) == contents(expected)


@pytest.mark.parametrize("variant", MIXTURES)
def test_experts_stored_one_by_one_go_to_files_of_the_size_asked_for(variant, tmp_path, monkeypatch):
    folder = save(tmp_path / "dense", variant)
    plan = make_plan(folder, "experts", uniform=True)
    found = streamed(folder, plan, tmp_path / "streamed", monkeypatch, MANY)
    assert_same_tensors(found, in_memory(folder, plan, tmp_path / "memory", torch.bfloat16))
    sizes = [sum(tensor.nbytes for tensor in load_file(file).values()) for file in found.glob("*.safetensors")]
    assert len(sizes) > 2
    assert max(sizes) <= 10_000
    AutoModelForCausalLM.from_pretrained(found)


def with_biases(plan, space, architecture):
    torch.manual_seed(0)
    modules = [module for block in architecture.blocks for module in (block.attention.out, block.mlp.down)]
    return Plan((*plan.edits, *(Bias(m, torch.randn(space.shapes[f"{m}.weight"][0])) for m in modules)), plan.space)


def with_routes(plan, space, architecture):
    return routed_plan(space, architecture)


def with_rotation(plan, space, architecture):
    basis = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.double))[0]
    return Plan((*plan.edits, Rotate("*", basis.float())), plan.space)


@pytest.mark.parametrize("edits", [with_biases, with_routes])
@pytest.mark.parametrize("variant", ["llama", "llama_mha_biased"])
def test_constants_and_routers_are_streamed_too(variant, edits, tmp_path, monkeypatch):
    folder = save(tmp_path / "dense", variant)
    plan = make_plan(folder, "disp", edits=edits)
    expected = in_memory(folder, plan, tmp_path / "memory", torch.bfloat16)
    assert contents(streamed(folder, plan, tmp_path / "streamed", monkeypatch)) == contents(expected)


def test_a_rotation_is_cut_in_memory(tmp_path):
    folder = save(tmp_path / "dense", "llama")
    plan = make_plan(folder, "residual", edits=with_rotation)
    number = stages.compress_model(str(folder), plan, tmp_path / "small", max_shard_size=MANY)
    assert contents(tmp_path / "small") == contents(
        in_memory(folder, plan, tmp_path / "memory", torch.bfloat16, shard=MANY)
    )
    assert number == sum(tensor.numel() for tensor in tensors(tmp_path / "small").values())


def test_other_weight_files_are_refused(tmp_path):
    folder = save(tmp_path / "dense", "llama", shard=ONE)
    plan = make_plan(folder, "width")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="safetensors"):
        stages.compress_model(str(folder), plan, tmp_path / "small")
    assert not (tmp_path / "small").exists()


def test_names_without_the_causal_lm_s_prefix_are_found(tmp_path, monkeypatch):
    folder = save(tmp_path / "dense", "llama3", shard=ONE)  # tied, so that the inner model has all weights
    plan = make_plan(folder, "width")
    expected = contents(in_memory(folder, plan, tmp_path / "memory", torch.bfloat16))
    LlamaForCausalLM.from_pretrained(folder).model.save_pretrained(folder)
    assert "embed_tokens.weight" in load_file(folder / "model.safetensors")
    assert contents(streamed(folder, plan, tmp_path / "small", monkeypatch)) == expected


@pytest.mark.parametrize("difference", [0, 1])
def test_a_tied_tensor_that_is_stored_twice_is_loaded(tmp_path, difference):
    """Loading compares the two, and does not tie them if they differ."""
    folder = save(tmp_path / "dense", "llama3", shard=ONE)
    stored = load_file(folder / "model.safetensors")
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"] + difference
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    plan = make_plan(folder, "width")
    expected = in_memory(folder, plan, tmp_path / "memory", torch.bfloat16)
    stages.compress_model(str(folder), plan, tmp_path / "small")
    assert contents(tmp_path / "small") == contents(expected)


def test_incomplete_weights_are_refused(tmp_path):
    folder = save(tmp_path / "dense", "llama", shard=ONE)
    plan = make_plan(folder, "width")
    stored = load_file(folder / "model.safetensors")
    del stored["model.norm.weight"]
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"1 are missing, such as model\.norm\.weight"):
        stages.compress_model(str(folder), plan, tmp_path / "small")
    assert not (tmp_path / "small").exists()


def test_generation_settings_travel(tmp_path, monkeypatch):
    folder = save(tmp_path / "dense", "llama")
    GenerationConfig(do_sample=True, temperature=0.3, eos_token_id=2).save_pretrained(folder)
    found = streamed(folder, make_plan(folder, "width"), tmp_path / "small", monkeypatch)
    assert GenerationConfig.from_pretrained(found).temperature == 0.3


def test_what_cannot_work_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    folder = save(tmp_path / "dense", "llama")
    plan = make_plan(save(tmp_path / "other" / "dense", "llama", intermediate_size=64), "width")
    forbid_loading(monkeypatch)
    with pytest.raises(PlanMismatch, match="belongs to space"):
        stages.compress_model(str(folder), plan, tmp_path / "small")
    with pytest.raises(ConfigError, match="`large` is not a size"):
        stages.compress_model(str(folder), plan, tmp_path / "small", max_shard_size="large")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file"):
        stages.compress_model(str(folder), plan, tmp_path / "file")
    assert {entry.name for entry in tmp_path.iterdir()} == {"dense", "other", "file"}


@pytest.mark.parametrize("earlier", [True, False])
def test_a_stop_leaves_everything_as_it_was(tmp_path, earlier):
    class Stop(Progress):
        def item(self, task, done, total):
            if task.startswith("file 2 of "):
                raise Stopped

    folder = save(tmp_path / "dense", "llama")
    plan = make_plan(folder, "width")
    if earlier:
        stages.compress_model(str(folder), plan, tmp_path / "small")
    before = contents(tmp_path / "small") if earlier else None
    names = {entry.name for entry in tmp_path.iterdir()}
    with pytest.raises(Stopped):
        stages.compress_model(str(folder), plan, tmp_path / "small", max_shard_size=MANY, progress=Stop())
    assert {entry.name for entry in tmp_path.iterdir()} == names
    assert before is None or contents(tmp_path / "small") == before


def test_progress_counts_the_tensors_of_every_file(tmp_path):
    class Seen(Progress):
        def __init__(self):
            self.items = []

        def item(self, task, done, total):
            self.items.append((task, done, total))

    folder = save(tmp_path / "dense", "llama")
    seen = Seen()
    stages.compress_model(
        str(folder), make_plan(folder, "width"), tmp_path / "small", max_shard_size=MANY, progress=seen
    )
    number = len(list((tmp_path / "small").glob("*.safetensors")))
    assert [task for task, done, total in seen.items if done == total] == [
        f"file {index} of {number}" for index in range(1, number + 1)
    ]
    assert len(seen.items) == len(tensors(tmp_path / "small"))


def test_a_file_equals_the_one_of_the_safetensors_library(tmp_path):
    torch.manual_seed(0)
    content = {
        "b.weight": torch.randn(5, 3),
        "a.weight": torch.randn(7, 2).bfloat16(),
        "half": torch.randn(3).half(),
        "double": torch.randn(2, 2, 2, dtype=torch.double),
        "index": torch.arange(3),
        "experts": torch.rand(3, 5) < 0.5,
    }
    save_file(content, tmp_path / "library", metadata={"format": "pt"})
    write_file(tmp_path / "own", content, lambda key: iter(content[key].split(2)), lambda _: None)
    assert (tmp_path / "own").read_bytes() == (tmp_path / "library").read_bytes()
