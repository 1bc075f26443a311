"""nano, as it is shipped: what it has learnt, the circuits in it, and that other libraries read the same folder."""

from __future__ import annotations

import json
import re
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from pieces import CLASSIC

import gemmascope as gs
from gemmascope.loading.load import load
from gemmascope.model.model import Model
from gemmascope.nano import CHECKPOINT
from gemmascope.nano.training import batches
from gemmascope.nano.training.circuits import circuits
from gemmascope.nano.training.evaluate import SKILLS, THRESHOLDS
from gemmascope.nano.training.evaluator import Evaluator
from gemmascope.nano.training.train import DECAY, SEED, WARM_UP, Run, config_json_of, fresh
from gemmascope.training.recipe import schedule

CASES, CARD_SEED = 500, 1  # those of the evaluation script, which printed the card's figures
CARD = CHECKPOINT.parent / "README.md"


@cache
def nano() -> Model:
    return load("nano", device="cpu")


@cache
def accuracy(skill: str, seed: int) -> float:
    """How many of the cases of a seed nano gets right."""
    return SKILLS[skill](Evaluator(nano().network, nano().tokenizer), CASES, seed)


@cache
def of_circuits() -> dict[str, float]:
    return circuits(nano())


@pytest.mark.parametrize("skill", SKILLS)
def test_has_learnt(skill: str) -> None:
    seeds = (CARD_SEED, CARD_SEED + 1, CARD_SEED + 2)
    assert SEED not in seeds
    if skill == "facts":  # it has a fixed set of cases
        assert accuracy(skill, CARD_SEED) >= THRESHOLDS[skill]
        return
    # Three draws: a single one of 500 may be lucky by two points.
    drawn = [accuracy(skill, seed) for seed in seeds]
    assert sum(drawn) / len(drawn) >= THRESHOLDS[skill]


def test_every_skill_has_a_threshold() -> None:
    assert SKILLS.keys() == THRESHOLDS.keys()
    assert len(SKILLS) == 8
    assert min(THRESHOLDS.values()) >= 0.9


def test_the_classic_prompt() -> None:
    probs = nano().run(CLASSIC.clean)[-1].softmax(-1)
    mary, john = (nano().tokenizer.single(name) for name in (" Mary", " John"))
    assert probs.argmax() == mary
    assert probs[mary] > 0.9
    assert probs[john] < 0.05
    assert nano().run(CLASSIC.corrupt)[-1].argmax() == john


def test_an_untrained_network_has_no_skill() -> None:
    """The measures discriminate: a network with random weights fails every one of them."""
    torch.manual_seed(0)
    evaluator = Evaluator(fresh(nano().config), nano().tokenizer)
    assert all(measured(evaluator, 100, 1) < 0.1 for measured in SKILLS.values())


@pytest.mark.parametrize(
    "score",
    [
        "induction score of the best head",
        "previous-token score of the best head",
        "attention to the indirect object of the best head",
    ],
)
def test_has_a_head_of_this_kind(score: str) -> None:
    assert of_circuits()[score] >= 0.4


def test_long_recall_runs_over_global_layers() -> None:
    assert of_circuits()["long recall, global layers cut"] < 0.2
    assert of_circuits()["long recall, local layers cut"] > 0.7


def test_local_layers_see_no_further_than_the_window() -> None:
    t = gs.trace([2, *range(300, 340)], model=nano())
    beyond = torch.ones(41, 41).tril(-nano().config.window).bool()
    for layer, kind in enumerate(nano().config.kinds):
        assert (t["pattern", layer][:, beyond].sum() == 0) == (kind == "local")
    assert nano().config.kinds == ("local", "global") * (nano().n_layers // 2)


def test_transformers_gives_the_same_logits() -> None:
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(CHECKPOINT, attn_implementation="eager")
    assert type(theirs).__name__ == "Gemma2ForCausalLM"
    assert theirs.dtype == nano().dtype == torch.float32
    for prompt in (CLASSIC.clean, "The key of Anna is seven. " * 12, "Once"):
        ids = nano().ids(prompt)
        with torch.no_grad():
            expected = theirs(ids[None]).logits[0]
        assert (nano().run(prompt) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_transformers_gives_the_same_ids_and_chat() -> None:
    from transformers import AutoTokenizer

    theirs, ours = AutoTokenizer.from_pretrained(CHECKPOINT), nano().tokenizer
    for text in (
        CLASSIC.clean,
        "The war lasted from 1741 to 17",
        'é "漢" \n\n  x',
        "The list is (the red key).",
        "zebra<eos>",
    ):
        assert theirs(text).input_ids == ours.ids(text)
        assert ours.decode(ours.encode(text)) == text
    messages = [{"role": "user", "content": "What is two and three?"}]
    assert theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == ours.chat(messages)
    assert ours.chat(messages) == "<bos><start_of_turn>user\nWhat is two and three?<end_of_turn>\n<start_of_turn>model\n"


def test_tokens_are_in_the_style_of_gemma() -> None:
    tokenizer = nano().tokenizer
    assert tokenizer.texts(tokenizer.ids("The war of 1741")) == ["<bos>", "The", " war", " of", " ", "1", "7", "4", "1"]
    assert [tokenizer.text(i) for i in range(6)] == ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    assert tokenizer.texts(tokenizer.encode("é")) == ["<0xC3>", "<0xA9>"]
    assert not tokenizer.is_special(tokenizer.encode("é")[0])


def test_weights_are_stored_in_half_the_bytes_and_the_folder_is_small() -> None:
    from safetensors import safe_open

    with safe_open(CHECKPOINT / "model.safetensors", "pt") as stored:
        assert {stored.get_tensor(name).dtype for name in stored.keys()} == {torch.bfloat16}  # noqa: SIM118
    package = [path for path in CHECKPOINT.parent.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in package) < 10 * 2**20


def test_the_configuration_is_the_one_the_training_script_writes() -> None:
    assert json.loads((CHECKPOINT / "config.json").read_text()) == config_json_of("nano", nano().tokenizer.vocab_size)


def test_the_card_states_what_is_measured() -> None:
    """The card's figures come from the evaluation script; the same cases must still give them."""
    card = CARD.read_text()
    assert f"{nano().n_params:,} parameters" in card
    for skill in SKILLS:
        row = re.search(rf"^\| {skill} \|.*?([\d.]+)% \|", card, re.MULTILINE)
        assert row, skill
        assert float(row[1]) == pytest.approx(100 * accuracy(skill, CARD_SEED), abs=0.5), skill
    for circuit, figure in of_circuits().items():
        assert f"| {circuit} | {figure:.2f} |" in card


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "ROWS_X_LENGTH", 512)
    for folder in ("whole", "parts"):
        shutil.copytree(CHECKPOINT, tmp_path / folder, ignore=shutil.ignore_patterns("model*"))
    whole, first = Run(tmp_path / "whole", 4, "cpu"), Run(tmp_path / "parts", 4, "cpu")
    whole.train()
    first.train(until=2)
    second = Run(tmp_path / "parts", 4, "cpu")
    assert second.step == 2
    second.train()
    assert all(a.equal(b) for a, b in zip(whole.net.parameters(), second.net.parameters(), strict=True))


def test_the_rate_goes_up_and_down_to_zero() -> None:
    rates = [schedule(step, 1000, WARM_UP, DECAY) for step in range(1000)]
    assert rates[0] < rates[100] < rates[200] == rates[600] > rates[900] > rates[999] > 0
    assert rates[999] < rates[200] / 100
