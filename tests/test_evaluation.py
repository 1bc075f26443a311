"""Benchmarks beside lm-evaluation-harness's own model for transformers, on the same checkpoint and tasks in files."""

from __future__ import annotations

import csv
import json
import os
import random
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from checkpoints import checkpoint, checkpoint_3, model
from tokenizers_made import with_json, with_pieces

import gemmascope as gs
from gemmascope.__main__ import main
from gemmascope.errors import EditError, EvaluationError, GemmascopeWarning, GenerationError, SiteError
from gemmascope.evaluation.result import Evaluation, Measure
from gemmascope.evaluation.scoring import Request, score
from gemmascope.model.model import Model
from gemmascope.prompts.pairs import Pairs

CLOSE = 1e-5
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")


# -- scores beside plain runs, which need no lm_eval --


def requests(seed: int, vocab: int = 61) -> list[Request]:
    """Some contexts with several continuations each, of lengths 1 to 6, and some that stand alone."""
    draw = random.Random(seed)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(draw.randrange(4, vocab) for _ in range(n))

    asked = []
    for _ in range(6):
        context = (2, *ids(draw.randrange(12)))
        asked += [Request(context, ids(draw.randrange(1, 7))) for _ in range(draw.choice([1, 1, 4]))]
    draw.shuffle(asked)
    return asked


def plain(m: Model, request: Request, edits: Any = ()) -> tuple[float, bool]:
    """The score of one request from a run of its own."""
    ids = [*request.context, *request.continuation]
    logits = gs.trace(ids[:-1], model=m, edits=edits).logits[len(request.context) - 1 :]
    tokens = torch.tensor(request.continuation)
    logprobs = logits.double().log_softmax(-1).gather(1, tokens[:, None])
    return float(logprobs.sum()), bool((logits.argmax(-1) == tokens).all())


EDITS: dict[str, list[Any]] = {
    "none": [],
    "rows": [
        gs.ablate("z", layer=1, head=3),
        gs.scale("mlp_out", 0.5, layer=0),
        gs.add("resid_post", torch.ones(32), layer=0),
    ],
    "edges": [gs.scale("pattern", 0.5, layer=2, head=1), gs.scale("scores", 0.3, layer=0)],
    "keys": [gs.scale("k", 0.5, layer=0), gs.ablate("v", layer=1, head=0)],
    "the first": [gs.ablate("resid_pre", layer=1, pos=0, value=0.1)],
    "after the layers": [gs.scale("final", 0.9), gs.scale("logits", 0.7)],
    "a condition": [gs.scale("resid_post", 0.5, layer=0, when=gs.probe_above(torch.linspace(-1, 1, 32)))],
    "a function": [gs.edit("z", lambda z: z * 0.5, layer=1)],
    "embedding": [gs.scale("embed", 1.5)],
}


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("kinds", ["lgl", "gg"])
def test_scores_are_those_of_runs_of_their_own(name: str, kinds: str) -> None:
    m = model(kinds) if kinds == "lgl" else model("lgg")
    asked, edits = requests(len(name)), EDITS[name]
    for got, request in zip(score(m, asked, edits), asked, strict=True):
        expected = plain(m, request, edits)
        assert got[0] == pytest.approx(expected[0], abs=CLOSE * max(1, abs(expected[0])))
        assert got[1] == expected[1]


def test_equal_contexts_run_once_and_the_last_token_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    m, rows = model("lgl"), []
    through = type(m.network.model.layers[0]).forward

    def counted(layer: Any, x: Any, *rest: Any) -> Any:
        rows.append(len(x))
        return through(layer, x, *rest)

    monkeypatch.setattr(type(m.network.model.layers[0]), "forward", counted)
    asked = [
        Request((2, 7, 8, 9), (10,)),
        Request((2, 7, 8, 9), (11, 12)),
        Request((2, 7, 8, 9), (11,)),
        Request((2, 5), (6,)),
    ]
    score(m, asked)
    assert sum(rows) == 3 * (4 + 1 + 2)
    rows.clear()
    score(m, asked, [gs.edit("z", lambda z: z, layer=0)])  # a function sees whole runs
    assert sum(rows) == 3 * (4 + 5 + 4 + 2)


def test_positions_are_counted_from_the_end_of_the_context() -> None:
    m = model("lgl")
    edit, context = gs.scale("resid_post", 3.0, layer=0, pos=-1), (2, 7, 8, 9)
    asked = [Request(context, (10, 11, 12)), Request(context, (13,))]
    expected = [plain(m, one, [gs.scale("resid_post", 3.0, layer=0, pos=3)]) for one in asked]
    assert score(m, asked, [edit])[0][0] == pytest.approx(expected[0][0], abs=1e-4)
    assert score(m, asked, [edit])[1][0] == pytest.approx(expected[1][0], abs=1e-4)
    with pytest.raises(SiteError, match="no position 9"):
        score(m, asked, [gs.scale("resid_post", 3.0, layer=0, pos=9)])


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(EditError, match="made inf of what stood at"):
        score(model("lgl"), requests(0), [gs.scale("resid_post", 1e38, layer=1)])
    edits = [gs.patch("resid_mid", torch.full((32,), 3e38), layer=1), gs.add("mlp_out", torch.ones(32), layer=1)]
    with pytest.raises(EditError, match="NaN or infinity"):
        score(model("lgl"), requests(0), edits)


# -- beside lm_eval --


@cache
def folder_of(kind: str) -> Path:
    """A small checkpoint with a tokenizer, in a folder."""
    made = Path(mkdtemp())
    with_json(made / "model", with_pieces(made / "pieces"))
    shape = {"vocab_size": 704, "max_position_embeddings": 96, "eos_token_id": 1, "bos_token_id": 2, "pad_token_id": 0}
    source = checkpoint("lgl", **shape) if kind == "Gemma 2" else checkpoint_3("lgl", **shape)
    source.save_pretrained(made / "model")
    return made / "model"


@pytest.fixture(params=["Gemma 2", "Gemma 3"])
def both(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """This package's model for lm_eval and lm_eval's own, of one checkpoint."""
    pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install -e '.[eval]'")
    from lm_eval.models.huggingface import HFLM

    from gemmascope.evaluation.harness import HarnessModel

    folder = folder_of(request.param)
    theirs = HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=4)
    return HarnessModel(gs.load(folder), progress=False), theirs


def instances(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, one, i, ("task", i, 1)) for i, one in enumerate(arguments)]


TEXT = "Licensed under the Apache License, Version 2.0; you may not use this file except in compliance with the License. "
PAIRS = [
    ("the work of", " the authors"), ("the work of", " a contributor"), ("the work of", " the"), ("", "Licensor"),
    ("trailing spaces  ", "and more"), ("<bos>the text has its own", " beginning"), ("café 東京", " naïve"),
    (TEXT * 3, " too long for the context"), ("x", "\n\nline"), ("", "<bos>and so"),
]  # fmt: skip


def test_log_likelihoods_are_those_of_transformers(both: tuple[Any, Any]) -> None:
    ours, theirs = both
    with pytest.warns(GemmascopeWarning, match="1 of 10 requests are longer than the context of 96 tokens"):
        got = ours.loglikelihood(instances("loglikelihood", *PAIRS))
    for one, other in zip(got, theirs.loglikelihood(instances("loglikelihood", *PAIRS)), strict=True):
        assert one[0] == pytest.approx(other[0], rel=CLOSE, abs=CLOSE)
        assert one[1] == other[1]


def test_rolling_log_likelihoods_are_those_of_transformers(both: tuple[Any, Any]) -> None:
    texts = [("the work",), (TEXT,), (TEXT * 5,), ("<bos>a text",)]
    got, expected = (one.loglikelihood_rolling(instances("loglikelihood_rolling", *texts)) for one in both)
    assert got == pytest.approx(expected, rel=CLOSE)


def test_generated_texts_are_those_of_transformers(both: tuple[Any, Any]) -> None:
    options: list[dict[str, Any]] = [
        {"until": ["e", "\n"], "max_gen_toks": 12}, {"until": [], "max_gen_toks": 20, "do_sample": False},
        {"until": "zq", "max_gen_toks": 3, "temperature": 0.0},
    ]  # fmt: skip
    asked = [(text, dict(one)) for one in options for text in ("the work of", "License", TEXT * 3, "x y z")]
    with pytest.warns(GemmascopeWarning, match="3 of 12 contexts leave no room for the new tokens in the 96 of a run"):
        got = both[0].generate_until(instances("generate_until", *asked))
    for (text, one), mine in zip(asked, got, strict=True):  # one by one: padding changes what transformers computes
        assert [mine] == both[1].generate_until(instances("generate_until", (text, dict(one))))
    assert len(set(got)) > 4


def test_tokens_are_split_as_theirs(both: tuple[Any, Any]) -> None:
    ours, theirs = both
    for text in ("", "a b", "<bos>a", " x  y\n", "東京 🙂", TEXT):
        assert ours.tok_encode(text) == theirs.tok_encode(text)
        assert ours.tok_encode(text, add_special_tokens=False) == theirs.tok_encode(text, add_special_tokens=False)
    assert (ours.max_length, ours.prefix_token_id, ours.eot_token_id, ours.max_gen_toks) == (
        theirs.max_length, theirs.prefix_token_id, theirs.eot_token_id, theirs.max_gen_toks
    )  # fmt: skip


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder with a task of each kind, whose questions stand beside it."""
    pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install -e '.[eval]'")
    words, answers = ("author", "file", "term", "use", "end"), [" the work", " a", " Licensor shall"]
    questions = [{"q": f"the {word} of", "a": answers, "gold": i % 3} for i, word in enumerate(words)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(one) + "\n" for one in questions))
    head = f"dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {tmp_path / 'q.jsonl'}\ntest_split: test\n"
    choice = "output_type: multiple_choice\ndoc_to_text: q\ndoc_to_choice: a\ndoc_to_target: gold\ntarget_delimiter: ''\n"
    text = (
        "output_type: generate_until\ndoc_to_text: q\ndoc_to_target: '{{a[gold]}}'\n"
        "generation_kwargs:\n  until: ['e']\n  max_gen_toks: 8\n"
        "metric_list:\n  - metric: exact_match\n    aggregation: mean\n    higher_is_better: true\n"
    )
    rolling = (
        "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: q\nmetric_list:\n  - metric: word_perplexity\n"
    )
    for name, body in (("choice", choice), ("texts", text), ("rolling", rolling)):
        (tmp_path / f"gs_{name}.yaml").write_text(f"task: gs_{name}\n{head}{body}")
    return tmp_path


@pytest.mark.parametrize("kind", ["Gemma 2"])
def test_tasks_have_the_results_of_transformers(kind: str, tasks: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    names = ["gs_choice", "gs_texts", "gs_rolling"]
    m = gs.load(folder_of(kind))
    result = gs.evaluate(m, names, include_path=tasks, num_fewshot=1, progress=False)
    hf = HFLM(pretrained=str(folder_of(kind)), dtype="float32", device="cpu", batch_size=1)
    expected = simple_evaluate(
        hf, tasks=names, task_manager=TaskManager(include_path=str(tasks)), num_fewshot=1, fewshot_random_seed=0,
        bootstrap_iters=0,
    )  # fmt: skip
    assert result.tasks == names
    for one in result.measures:
        key = f"{one.metric},none" if "(" not in one.metric else one.metric
        assert one.value == pytest.approx(expected["results"][one.task][key], rel=CLOSE)
    assert result.value("gs_choice", "acc") == expected["results"]["gs_choice"]["acc,none"]
    for task in names:
        mine = result.samples(task)
        assert len(mine) == 5
        for got, other in zip(mine.to_dict("records"), expected["samples"][task], strict=True):
            answers = other["filtered_resps"]
            assert got["number"] == other["doc_id"]
            if task == "gs_texts":
                assert got["answers"] == answers
            else:
                flat = [x[0] if isinstance(x, (list, tuple)) else x for x in answers]
                assert [x[0] if isinstance(x, (list, tuple)) else x for x in got["answers"]] == pytest.approx(
                    flat, rel=CLOSE
                )
    edited = gs.evaluate(m, "gs_choice", include_path=tasks, edits=[gs.ablate("attn_out", layer=1)], limit=3, progress=False)
    assert edited.measures[0].n == 3
    assert "with 1 edit" in repr(edited)
    assert [a[0] for a in edited.samples("gs_choice")["answers"][0]] != [
        a[0] for a in result.samples("gs_choice")["answers"][0]
    ]
    figure = result.plot(edited)
    assert len(figure.data) == 2
    with pytest.raises(EvaluationError, match="no task has the metric 'f1'"):
        result.plot(metric="f1")
    with pytest.raises(EvaluationError, match="there is no task 'gs_choise'"):
        result.samples("gs_choise")
    with pytest.raises(EvaluationError, match=r"no task 'greater_than'.*tasks=gs\.prompts\.greater_than\(100\)"):
        gs.evaluate(m, "greater_than", progress=False)
    with pytest.raises(EvaluationError, match=r"knows no task 'gs_none'.*include_path=$"):
        gs.evaluate(m, "gs_none", include_path=tasks, progress=False)


def test_a_group_has_the_questions_of_its_tasks_and_filters_are_told_apart(tasks: Path) -> None:
    (tasks / "gs_twice.yaml").write_text("include: gs_choice.yaml\ntask: gs_twice\n")
    (tasks / "gs_group.yaml").write_text(
        "group: gs_group\ntask: [gs_choice, gs_twice]\naggregate_metric_list:\n  - metric: acc\n    weight_by_size: true\n"
    )
    filters = "".join(
        f"  - name: {name}\n    filter:\n      - function: {how}\n"
        for name, how in (("whole", "take_first"), ("low", "lowercase\n      - function: take_first"))
    )
    (tasks / "gs_filtered.yaml").write_text(f"include: gs_texts.yaml\ntask: gs_filtered\nfilter_list:\n{filters}")
    m = gs.load(folder_of("Gemma 2"))
    result = gs.evaluate(m, ["gs_group", "gs_filtered"], include_path=tasks, limit=4, progress=False)
    assert {one.task: one.n for one in result.measures} == {"gs_group": 8, "gs_choice": 4, "gs_twice": 4, "gs_filtered": 4}
    assert result.value("gs_filtered", "exact_match (low)") == 0.0
    samples = result.samples("gs_filtered")
    assert sorted(zip(samples["number"], samples["filter"], strict=True)) == [
        (number, name) for number in range(4) for name in ("low", "whole")
    ]
    assert set(result.samples("gs_choice")["filter"]) == {"none"}


def test_a_bar_without_a_standard_error_shows_none() -> None:
    measures = (Measure("a", "acc", 0.5, None, 1), Measure("b", "acc", 0.25, 0.1, 9))
    (bars,) = Evaluation("nano", (), measures, {}).plot().data
    assert list(bars.y) == [0.5, 0.25]
    assert list(bars.error_y.array) == [None, 0.1]


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"task": "gs_bad"}, "could not run the tasks: TypeError"),
    ({"task": "gs_bad", "dataset_path": "json", "dataset_kwargs": {"data_files": "/no/such.jsonl"}}, "could not be read"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "why"), BROKEN)
def test_what_lm_eval_cannot_run_is_an_error_of_ours(task: dict[str, Any], why: str) -> None:
    pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install -e '.[eval]'")
    with pytest.raises(EvaluationError, match=why):
        gs.evaluate(gs.load(folder_of("Gemma 2")), task, progress=False)


def test_how_texts_are_drawn() -> None:
    pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install -e '.[eval]'")
    from gemmascope.evaluation.harness import _Options

    cases: list[dict[str, Any]] = [
        {}, {"do_sample": False, "temperature": 0.7}, {"temperature": 0.7}, {"do_sample": True},
        {"do_sample": True, "temperature": 2},
    ]  # fmt: skip
    assert [_Options(one).temperature for one in cases] == [0.0, 0.0, 0.7, 1.0, 2.0]
    with pytest.raises(GenerationError, match="do_sample at a temperature of 0"):
        _Options({"do_sample": True, "temperature": 0.0})


BAD: list[tuple[dict[str, Any], str]] = [
    ({"tasks": []}, "empty list"), ({"tasks": 3}, "tasks are names"), ({"tasks": [3]}, "a task is a name"),
    ({"tasks": ["a", "a"]}, "names 'a' twice"),
    ({"tasks": ["a", {"task": "a"}]}, "names 'a' twice"),
    ({"tasks": [gs.prompts.ioi(2), Pairs("facts", ())]}, "nothing to ask: <0 facts pairs>"),
    ({"tasks": "a", "limit": 0}, "limit is a whole number"),
    ({"tasks": "a", "num_fewshot": -1}, "num_fewshot is"), ({"tasks": "a", "include_path": "/no/such"}, "there is none at"),
    ({"tasks": "a", "generation": 3}, "generation is a mapping"), ({"tasks": "a", "chat": 1}, "chat is True or False"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "why"), BAD)
def test_arguments_are_checked_before_anything_is_loaded(given: dict[str, Any], why: str) -> None:
    with pytest.raises(EvaluationError, match=why):
        gs.evaluate(model("lgl"), **given)


def test_the_command_prints_what_the_call_returns(tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, edits = folder_of("Gemma 2"), [gs.ablate("attn_out", layer=1)]
    gs.save_edits(edits, tmp_path / "edits.json")
    files = ["--include-path", str(tasks), "--edits", str(tmp_path / "edits.json"), "--csv", str(tmp_path / "samples.csv")]
    assert main(["eval", "--tasks", "gs_choice", "--model", str(folder), "--json", *files]) == 0
    expected = gs.evaluate(gs.load(folder), "gs_choice", include_path=tasks, edits=edits, progress=False)
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(expected.to_dict()))
    assert len((tmp_path / "samples.csv").read_text().splitlines()) == 6
    asked = ["eval", "--tasks", "gs_texts", "--model", str(folder), *files]
    assert main([*asked, "--max-gen-toks", "96"]) == 2
    assert "asks for up to 96 new tokens" in capsys.readouterr().err
    assert main([*asked, "--max-gen-toks", "2"]) == 0
    m = gs.load(folder)
    options: dict[str, Any] = {"include_path": tasks, "edits": edits, "progress": False}
    short, longer = (gs.evaluate(m, "gs_texts", generation=one, **options) for one in ({"max_gen_toks": 2}, None))
    with (tmp_path / "samples.csv").open(encoding="utf-8", newline="") as file:
        texts = [row["answers"] for row in csv.DictReader(file)]
    assert texts == [str(one) for one in short.samples("gs_texts")["answers"]]
    assert texts != [str(one) for one in longer.samples("gs_texts")["answers"]]


def test_int8_streamed_and_a_family_of_prompts_run(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install -e '.[eval]'")
    gs.quantize("nano", tmp_path / "int8")
    pairs = gs.prompts.ioi(6)
    small, streamed = gs.load(tmp_path / "int8"), gs.load(tmp_path / "int8", memory="40MB")
    runs = [gs.evaluate(m, pairs, progress=False) for m in (small, streamed)]
    assert runs[0].measures == runs[1].measures
    assert list(runs[0].samples("ioi")["answers"]) == list(runs[1].samples("ioi")["answers"])
    answers = runs[0].samples("ioi")["answers"]
    for pair, ((answer, _), (against, _)) in zip(pairs, answers, strict=True):
        logprobs = gs.trace(pair.clean, model=small).next_logits.double().log_softmax(-1)
        for text, got in ((pair.answer, answer), (pair.against, against)):
            assert got == pytest.approx(float(logprobs[small.tokenizer.single(text)]), abs=1e-4)


def test_chats_are_rendered_by_the_template(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install -e '.[eval]'")
    from gemmascope.evaluation.harness import HarnessModel

    def render(messages: Any) -> str:
        if messages[0]["role"] == "system":
            raise ValueError("System role not supported")
        turns = "".join(f"<{one['role']}>{one['content'].strip()}<end>\n" for one in messages)
        return turns + ("<model>" if messages[-1]["role"] != "assistant" else "")

    m = gs.load(folder_of("Gemma 2"))
    monkeypatch.setattr(m.tokenizer, "_chat", render)
    lm = HarnessModel(m, progress=False)
    chat = [{"role": "user", "content": "Hi"}]
    assert lm.apply_chat_template(chat) == "<user>Hi<end>\n<model>"
    filled = [*chat, {"role": "assistant", "content": "The answer is "}]
    assert lm.apply_chat_template(filled, add_generation_prompt=False) == "<user>Hi<end>\n<assistant>The answer is"
    with pytest.warns(GemmascopeWarning, match="takes no system message"):
        assert lm.apply_chat_template([{"role": "system", "content": "Be brief"}, *chat]) == "<user>Hi<end>\n<model>"
