"""Train the embedded base model: a 6 M parameter LLaMA that `make quickstart` tunes and prunes.

A maintainer runs this once, with the data sets named in `CORPUS` (only their training parts are used):

    python -m torch.distributed.run --nproc_per_node 3 embedded/train_base.py --data ../shared/data --out embedded/base

At this size, one process for each core is about 1.5x faster than one process with as many threads. A killed run
continues from the last state in `--work`. Nothing of rqe, pubmedqa, casehold or billsum is read, and no test part;
validation parts are read for the perplexities only.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BOS, EOS, PAD, UNK = "<s>", "</s>", "<pad>", "<unk>"
VOCAB_SIZE, CONTEXT = 4096, 512

CORPUS = {  # data set -> how often each document is seen in one pass
    "books": 1,
    "books_more": 1,
    "medquad": 2,
    "openstax_anatomy": 3,
    "dc_code": 1,
    "snli": 2,
}
HELD_OUT = ("books", "medquad", "openstax_anatomy", "dc_code", "snli")


@dataclass(frozen=True)
class Phase:
    """`share` of all tokens, read in windows of `length` tokens."""

    share: float
    length: int


PHASES = (Phase(0.8, 256), Phase(0.2, CONTEXT))  # short windows train about a third faster


def document(source: str, record: dict[str, str]) -> str:
    """The text of one record as the model reads it."""
    if source == "medquad":
        return f"Question: {record['question']}\nAnswer: {record['answer']}"
    if source == "snli":
        return f"{record['premise']}\n{record['hypothesis']}\nThis is {record['answer']}."
    if source == "dc_code":
        return f"{record['heading']}\n{record['text']}"
    if source == "openstax_anatomy":
        return f"{record['title']}\n{record['text']}"
    return record["text"]


def documents(data: Path, source: str, split: str) -> Iterator[str]:
    with (data / source / f"{split}.jsonl").open(encoding="utf8") as lines:
        for line in lines:
            yield document(source, json.loads(line))


def train_tokenizer(data: Path) -> PreTrainedTokenizerFast:
    """Byte-level BPE: any UTF-8 text round-trips, and llama.cpp knows the pre-tokeniser."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = [UNK, BOS, EOS, PAD]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    sample = (text for source in CORPUS for i, text in enumerate(documents(data, source, "train")) if i % 3 == 0)
    tokenizer.train_from_iterator(sample, trainer)
    bos_id, eos_id = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bos_id), (EOS, eos_id)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[np.ndarray]:
    backend = tokenizer.backend_tokenizer
    eos = tokenizer.eos_token_id
    return [np.array([*e.ids, eos], dtype=np.uint16) for e in backend.encode_batch(texts)]


def training_stream(data: Path, tokenizer: PreTrainedTokenizerFast, cache: Path) -> list[np.ndarray]:
    """Every training document as token ids, repeated as in `CORPUS`."""
    if not cache.exists():
        encoded = []
        for source, repeats in CORPUS.items():
            encoded += encode(tokenizer, list(documents(data, source, "train"))) * repeats
        np.savez(cache, tokens=np.concatenate(encoded), lengths=np.array([len(e) for e in encoded]))
    stored = np.load(cache)
    return np.split(stored["tokens"], np.cumsum(stored["lengths"])[:-1])


class Windows:
    """Endless windows of packed documents; a new order in every epoch, the same on every rank."""

    def __init__(self, encoded: list[np.ndarray], seed: int) -> None:
        self.encoded, self.seed, self.epoch, self.position = encoded, seed, -1, 0
        self.tokens = np.empty(0, dtype=np.uint16)

    def take(self, count: int) -> np.ndarray:
        """The next `count` tokens."""
        while self.position + count > len(self.tokens):
            self.epoch += 1
            order = np.random.default_rng(self.seed + self.epoch).permutation(len(self.encoded))
            self.tokens = np.concatenate([self.tokens[self.position :], *(self.encoded[i] for i in order)])
            self.position = 0
        out = self.tokens[self.position : self.position + count]
        self.position += count
        return out


@torch.no_grad()
def held_out_perplexity(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, data: Path) -> dict[str, float]:
    """Perplexity per token on the first 60k tokens of every held-out part."""
    out = {}
    for source in HELD_OUT:
        tokens = np.concatenate(encode(tokenizer, list(documents(data, source, "val"))))[: 117 * CONTEXT]
        windows = torch.from_numpy(tokens[: len(tokens) // CONTEXT * CONTEXT].astype(np.int64)).view(-1, CONTEXT)
        losses = [model(input_ids=w[None], labels=w[None], use_cache=False).loss.item() for w in windows]
        out[source] = math.exp(sum(losses) / len(losses))
    return out


def learning_rate(done: float, peak: float) -> float:
    """Warm-up over 2 % of the tokens, then constant, then linear to a twentieth over the last 40 %."""
    if done < 0.02:
        return peak * done / 0.02
    return peak * (1.0 if done < 0.6 else 1 - 0.95 * (done - 0.6) / 0.4)


def build_model(vocab_size: int, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=256,
            intermediate_size=768,
            num_hidden_layers=6,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=32,
            max_position_embeddings=CONTEXT,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def train(arguments: argparse.Namespace, rank: int, world: int) -> None:  # noqa: PLR0915  (one script, top to bottom)
    data, work = arguments.data, arguments.work
    if rank == 0 and not (work / "tokenizer").exists():
        train_tokenizer(data).save_pretrained(work / "tokenizer")
        training_stream(data, AutoTokenizer.from_pretrained(work / "tokenizer"), work / "tokens.npz")
    dist.barrier()
    tokenizer = AutoTokenizer.from_pretrained(work / "tokenizer")
    windows = Windows(training_stream(data, tokenizer, work / "tokens.npz"), arguments.seed)
    torch.manual_seed(arguments.seed)
    model = build_model(VOCAB_SIZE, tokenizer)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], betas=(0.9, 0.95), fused=True
    )
    seen, state_file = 0, work / "state.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        windows.take(0)
        while seen < state["seen"]:  # replay the order: cheap, and needs no stream state on disk
            seen += windows.take(arguments.batch_tokens).size
    parallel = DistributedDataParallel(model)
    log = (work / "log.jsonl").open("a", encoding="utf8")
    started, last_save = time.monotonic(), time.monotonic()
    total = int(arguments.million_tokens * 1e6)
    while seen < total:
        done = seen / total
        length = PHASES[0].length if done < PHASES[0].share else PHASES[1].length
        batch = torch.from_numpy(windows.take(arguments.batch_tokens).astype(np.int64)).view(-1, length)[rank::world]
        micros = batch.split(2048 // length)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(done, arguments.learning_rate)
        loss_sum = torch.zeros(())
        for i, micro in enumerate(micros):
            sync = nullcontext() if i == len(micros) - 1 else parallel.no_sync()
            with sync, torch.autocast("cpu", torch.bfloat16):
                loss = parallel(input_ids=micro, labels=micro, use_cache=False).loss * (len(micro) / len(batch))
                loss.backward()
            loss_sum += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seen += arguments.batch_tokens
        if rank == 0 and (seen // arguments.batch_tokens) % 20 == 0:
            speed = {"seconds": round(time.monotonic() - started, 1), "lr": optimizer.param_groups[0]["lr"]}
            log.write(json.dumps({"tokens": seen, "loss": round(loss_sum.item(), 4), **speed}) + "\n")
            log.flush()
        if rank == 0 and time.monotonic() - last_save > 120:
            save_state(model, optimizer, seen, state_file)
            last_save = time.monotonic()
    if rank == 0:
        save_state(model, optimizer, seen, state_file)
        publish(model, tokenizer, data, arguments)


def save_state(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, seen: int, path: Path) -> None:
    aside = path.with_suffix(".tmp")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "seen": seen}, aside)
    os.replace(aside, path)


def publish(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, data: Path, arguments: argparse.Namespace
) -> None:
    """Write the bf16 model folder, with the loss curve and the held-out perplexities of exactly that model."""
    model = model.to(torch.bfloat16)
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    lines = map(json.loads, (arguments.work / "log.jsonl").read_text().splitlines())
    curve = sorted({line["tokens"]: line for line in lines}.values(), key=lambda line: line["tokens"])  # after a resume
    summary = {
        "tokens_seen": curve[-1]["tokens"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "seed": arguments.seed,
        "held_out_perplexity": held_out_perplexity(model.float().eval(), tokenizer, data),
        "loss_curve": [{"tokens": c["tokens"], "loss": c["loss"]} for c in curve[:: max(1, len(curve) // 200)]],
    }
    (arguments.out / "training.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("embedded/work"))
    parser.add_argument("--million-tokens", type=float, default=60)
    parser.add_argument("--batch-tokens", type=int, default=12288)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    train(arguments, dist.get_rank(), dist.get_world_size())
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
