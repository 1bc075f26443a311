"""What a vocabulary of 256,000 tokens costs, beside the unembedding product of the same rows.

    python tests/benchmarks/vocabulary.py FOLDER --positions 200

FOLDER has Gemma 2's tokenizer (`python .ci/real.py FOLDER` brings it). The model is random: 26 layers, d_model 256. For each
piece of work this prints the rows that it unembeds, its seconds of one thread, and its time beside the product of those rows
with the unembedding; of work that unembeds nothing, its seconds alone, which are to stay below one.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

import gemmascope as gs
from gemmascope.config import PRESETS
from gemmascope.generation.stopping import can_occur
from gemmascope.labs.patching.checks import check
from gemmascope.labs.patching.settings import Settings
from gemmascope.model.gemma2 import Gemma2
from gemmascope.model.model import Model
from gemmascope.tokens.tokenizer import Tokenizer

TEXT = "When Mary and John went to the store, John gave a drink to"
Work = tuple[str, int, Callable[[], object]]


def random_model(folder: str) -> Model:
    config = replace(PRESETS["2b"], d_model=256, n_heads=4, n_kv_heads=2, d_head=64, d_mlp=1024, query_scalar=64)
    torch.manual_seed(0)
    network = Gemma2(config).to_empty(device="cpu")
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter.data, std=parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.1)
    tokenizer = Tokenizer.from_folder(folder).limited_to(config.vocab_size)
    return Model(network.eval().requires_grad_(False), tokenizer, "random-256000")


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def failing(work: Callable[[], object]) -> None:
    with suppress(gs.GemmascopeError):
        work()
        raise AssertionError("this was to be refused")


def all_work(model: Model, n_pos: int) -> Iterator[Work]:
    """Each piece of work, with the rows that it unembeds at least."""
    tokenizer, n_layers = model.tokenizer, model.n_layers
    ids = (model.ids(TEXT).tolist() * (n_pos // 14 + 1))[:n_pos]
    corrupt = TEXT.replace(", John gave", ", Mary gave")
    yield "the tokenizer's digest", 0, lambda: tokenizer.digest
    t, short = gs.trace(ids, model=model), gs.trace(TEXT, model=model)
    yield "a trace of the prompt", 0, lambda: gs.trace(ids, model=model)
    yield "its text", 1, lambda: repr(gs.trace(ids, model=model))
    yield "its HTML", 1, lambda: gs.trace(ids, model=model)._repr_html_()
    yield "gs.lens", n_layers * n_pos, lambda: gs.lens(t)
    lens = gs.lens_view(t)
    yield "gs.lens_view", n_layers * n_pos, lambda: gs.lens_view(t)
    yield f"its page, {len(lens._repr_html_()) / 1e6:.1f} MB", 0, lambda: lens._repr_html_()
    yield "t.lens() of 8 positions", n_layers * 8, lambda: [t.lens(pos=pos) for pos in range(8)]
    yield "gs.direct_logits by head", 2, lambda: gs.direct_logits(short, " Mary", against=" John", by="head")
    yield "a sweep, 26 layers x 15 positions", n_layers * 15, partial(
        gs.sweep, TEXT, corrupt, gs.logit_diff(" Mary", " John"), site="resid_pre", model=model, progress=False
    )  # fmt: skip
    yield "the same by KL divergence", n_layers * 15, lambda: gs.sweep(
        TEXT, corrupt, gs.kl_from(short), site="resid_pre", model=model, progress=False
    )  # fmt: skip
    yield "16 tokens", 16, lambda: gs.generate(TEXT, model=model, max_new_tokens=16)
    yield "16 drawn tokens, top_p", 16, lambda: gs.generate(TEXT, model=model, max_new_tokens=16, temperature=1.0, top_p=0.9)
    yield "a stop text that no token holds", 1, lambda: gs.generate(TEXT, model=model, max_new_tokens=1, stop="zqxjzqxj")
    yield "whether a text can occur", 0, lambda: can_occur("🫠 zqxj 東京", tokenizer)
    yield "again", 0, lambda: can_occur("🫠 zqxk 東京", tokenizer)
    yield "head scores", 0, lambda: gs.head_scores(model=model, kind="induction", n=1, length=20)
    yield "the fingerprint", 0, lambda: model.fingerprint
    yield "tokens beyond the embedding", 0, lambda: tokenizer.tokens_beyond(model.config.vocab_size)
    yield "its limit", 0, lambda: tokenizer.limited_to(1000)
    settings = Settings(clean=TEXT, corrupt=corrupt, answer=" Mary", against=" John")
    yield "the patching lab's checks", 0, lambda: check(settings, model)
    for wrong in (" Maryy", "Winfrey", " an answer of many tokens", "日本の首都は。"):
        typed = replace(settings, answer=wrong)
        yield f"its checks of {wrong!r}", 0, lambda typed=typed: check(typed, model)  # type: ignore[misc]
        yield f"the refusal of {wrong!r}", 0, lambda w=wrong: failing(lambda: tokenizer.single(w))  # type: ignore[misc]
    yield "a token that is not in the prompt", 0, lambda: failing(lambda: gs.trace(
        TEXT, model=model, edits=[gs.ablate("z", layer=0, pos=" Johm")]
    ))  # fmt: skip
    yield "compare, 1 prompt, all heads", 2 * (len(short) + 1 + n_layers * model.config.n_heads), lambda: gs.compare(
        model, model, TEXT
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--positions", type=int, default=40)
    parser.add_argument("--only", default="", help="work whose name holds this")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = random_model(str(args.folder))
    with torch.no_grad():
        rows = torch.randn(64, model.config.d_model)
        table = model.network.model.embed_tokens.weight
        rows @ table.T
        product = min(cpu_seconds(lambda: rows @ table.T) for _ in range(3)) / len(rows)
    print(f"the product of a row with the unembedding, 64 at once: {1000 * product:.1f} ms\n")
    print("| work | rows | seconds | beside their product |\n|---|---|---|---|")
    for name, n_rows, work in all_work(model, args.positions):
        if args.only not in name:
            continue
        took = cpu_seconds(work)
        beside = f"{took / (n_rows * product):.1f}" if n_rows else ""
        print(f"| {name} | {n_rows or ''} | {took:.2f} | {beside} |")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
