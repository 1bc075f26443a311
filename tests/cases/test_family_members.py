"""Relatives of Gemma 2 and 3 are refused by name, images with a clear text; a window that no prompt exceeds is warned of."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import checkpoint, checkpoint_3
from gguf_files import write_gguf
from pieces import worded
from tokenizers_made import CHAT_TEMPLATE, with_json, with_pieces

import gemmascope as gs
from gemmascope.config import PRESETS, GemmaConfig
from gemmascope.errors import CheckpointError, ConfigError, PromptError
from gemmascope.tokens.tokenizer import Tokenizer

# model_type, a class in transformers, the name that people know it by.
RELATIVES = [
    ("gemma", "GemmaForCausalLM", "Gemma 1"),
    ("gemma3n", "Gemma3nForConditionalGeneration", "Gemma 3n"),
    ("gemma3n_text", "Gemma3nForCausalLM", "Gemma 3n"),
    ("gemma4", "Gemma4ForConditionalGeneration", "Gemma 4"),
    ("gemma4_text", "Gemma4ForCausalLM", "Gemma 4"),
    ("gemma4_unified", "Gemma4UnifiedForConditionalGeneration", "Gemma 4"),
    ("recurrent_gemma", "RecurrentGemmaForCausalLM", "RecurrentGemma"),
    ("paligemma", "PaliGemmaForConditionalGeneration", "PaliGemma"),
    ("shieldgemma2", "ShieldGemma2ForImageClassification", "ShieldGemma 2"),
    ("t5gemma", "T5GemmaForConditionalGeneration", "T5Gemma"),
    ("t5gemma2", "T5Gemma2ForConditionalGeneration", "T5Gemma 2"),
    ("vaultgemma", "VaultGemmaForCausalLM", "VaultGemma"),
    ("embedding_gemma2", "EmbeddingGemma2Model", "EmbeddingGemma 2"),
    ("diffusion_gemma", "DiffusionGemmaForBlockDiffusion", "DiffusionGemma"),
]


@pytest.mark.parametrize(("model_type", "architecture", "name"), RELATIVES, ids=[name for name, _, _ in RELATIVES])
def test_a_relative_is_refused_by_name(model_type: str, architecture: str, name: str, tmp_path: Path) -> None:
    for content in ({"model_type": model_type}, {"architectures": [architecture]}):
        (tmp_path / "config.json").write_text(json.dumps(content))
        with pytest.raises(ConfigError, match=rf"this is not a Gemma 2 checkpoint, .*, which is {name} \("):
            gs.load(tmp_path)
        with pytest.raises(ConfigError, match=f", which is {name} "):
            gs.plan(tmp_path)
    in_memory = type(architecture, (), {"config": SimpleNamespace(model_type=model_type)})()
    with pytest.raises(CheckpointError, match=f"cannot load a {architecture}, which is {name}; a source is "):
        gs.load(in_memory)


def test_what_is_no_relative_gets_no_name() -> None:
    llama = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    for content in (llama, {"architectures": ["Gemma2ForCausalLM"]}):
        with pytest.raises(ConfigError, match=r"not a Gemma 2 checkpoint") as refused:
            GemmaConfig.from_dict(content)
        assert "which is" not in str(refused.value)


def test_embedding_gemma_is_refused_from_a_file_and_in_memory(tmp_path: Path) -> None:
    """Its configuration is Gemma 3's, but for attention that sees both ways."""
    content = PRESETS["3-270m"].to_dict() | {"architectures": ["Gemma3TextModel"], "use_bidirectional_attention": True}
    (tmp_path / "config.json").write_text(json.dumps(content))
    expected = r"use_bidirectional_attention \(Gemma 3 is causal; EmbeddingGemma is not\)"
    with pytest.raises(ConfigError, match=expected):
        gs.load(tmp_path)
    with pytest.raises(ConfigError, match=expected):
        gs.load(checkpoint_3("lg", use_bidirectional_attention=True).model)


@pytest.mark.parametrize(
    ("architecture", "name"),
    [("gemma", "Gemma 1"), ("gemma3n", "Gemma 3n"), ("gemma4", "Gemma 4"), ("gemma-embedding", "EmbeddingGemma")],
)
def test_a_gguf_file_of_a_relative_is_refused_by_name(architecture: str, name: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", checkpoint(), architecture=architecture)
    with pytest.raises(ConfigError, match=f"of the architecture '{architecture}', which is {name}; gemmascope runs"):
        gs.load(path)


def test_norms_of_queries_in_a_gemma_2_are_refused(tmp_path: Path) -> None:
    for field in ("use_qk_norm", "qk_norm"):
        with pytest.raises(ConfigError, match=rf"{field} \(Gemma 2 has no norms of queries and keys\)"):
            GemmaConfig.from_dict({**PRESETS["2b"].to_dict(), field: True})
        GemmaConfig.from_dict({**PRESETS["2b"].to_dict(), field: False})
    norm = {"blk.0.attn_q_norm.weight": np.zeros(12)}
    with pytest.raises(CheckpointError, match=r"'model\.layers\.0\.self_attn\.q_norm\.weight'.*unknown to Gemma 2"):
        gs.load(write_gguf(tmp_path / "m.gguf", checkpoint(), tensors=norm))
    source: Any = checkpoint("lg")
    source.model.layers[0].self_attn.q_norm = torch.nn.LayerNorm(12, bias=False)
    with pytest.raises(CheckpointError, match=r"'model\.layers\.0\.self_attn\.q_norm\.weight' is unknown to Gemma 2"):
        gs.load(source)


# -- images --


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tokenizer with the tokens of a multimodal one, and with a chat template."""
    folder = tmp_path_factory.mktemp("images")
    made = with_json(folder / "json", with_pieces(folder / "pieces"))
    content = json.loads((made / "tokenizer.json").read_text())
    plain = {"special": True, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    for i, name in enumerate(("<start_of_image>", "<end_of_image>", "<image_soft_token>")):
        content["added_tokens"].append({"id": 700 + i, "content": name, **plain})
    (made / "tokenizer.json").write_text(json.dumps(content))
    (made / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return made


@pytest.mark.parametrize("kind", ["image", "image_url", "audio", "video"])
def test_a_message_with_an_image_is_refused(kind: str, tokenizer: Path) -> None:
    ours = Tokenizer.from_folder(tokenizer)
    content = [{"type": kind, "url": "https://example.org/cat.png"}, {"type": "text", "text": "What is this?"}]
    with pytest.raises(PromptError, match=rf"given one of '{kind}'\. The text model runs alone here, also .*: leave it out"):
        ours.ids([{"role": "user", "content": content}])
    with pytest.raises(PromptError, match=r"given one of type ndarray. The text model.*leave it out"):
        ours.ids([{"role": "user", "content": [np.zeros((2, 2, 3)), "What is this?"]}])
    assert ours.ids([{"role": "user", "content": content[1:]}])[0] == ours.bos_id


def test_what_a_processor_made_of_an_image_is_refused() -> None:
    made = {"input_ids": torch.tensor([[2, 5, 6]]), "pixel_values": torch.zeros(1, 3, 8, 8)}
    with pytest.raises(PromptError, match=r"given a dict: it holds an image, and the text model runs alone here"):
        gs.trace(made, model=worded())  # type: ignore[arg-type]


def test_a_token_that_stands_for_an_image_is_warned_of(tokenizer: Path) -> None:
    model = gs.load(checkpoint_3("lg", vocab_size=703), tokenizer=tokenizer)
    for name in ("<start_of_image>", "<image_soft_token>", "<end_of_image>"):
        ids = [2, model.tokenizer.single(name), 300]
        expected = f"the prompt holds '{name}', behind which a multimodal Gemma reads an image: the text model runs alone"
        for prompt in (f"{name} is this", ids, torch.tensor(ids), [{"role": "user", "content": f"{name}?"}]):
            with pytest.warns(gs.GemmascopeWarning, match=expected):
                gs.trace(prompt, model=model)
    with pytest.warns(gs.GemmascopeWarning, match="the prompt holds '<start_of_image>'"):  # as letters
        gs.trace("<start_of_image>", model=gs.load(checkpoint(vocab_size=700), tokenizer=tokenizer.parent / "pieces"))
    small = gs.load(checkpoint_3("lg", vocab_size=702), tokenizer=tokenizer.parent / "pieces")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gs.trace("an image of <start>", model=small)


def test_an_image_token_that_the_text_model_cannot_embed_is_refused(tokenizer: Path) -> None:
    with pytest.warns(gs.GemmascopeWarning, match=r"'<image_soft_token>' \(702\) cannot be embedded"):
        model = gs.load(checkpoint_3("lg", vocab_size=702), tokenizer=tokenizer)
    with pytest.raises(PromptError, match="the tokenizer knows '<image_soft_token>' as id 702, and the model has an"):
        model.ids("a <image_soft_token>")
    with pytest.raises(PromptError, match="token id 702 is outside"), pytest.warns(gs.GemmascopeWarning, match="an image"):
        model.ids([2, 702])


# -- windows --


@pytest.mark.parametrize("make", [checkpoint, checkpoint_3])
def test_a_window_larger_than_the_context_is_warned_of(make: Any, tmp_path: Path) -> None:
    source = make("lg", sliding_window=65)
    source.save_pretrained(tmp_path / "folder")
    path = write_gguf(tmp_path / "m.gguf", source)
    for each in (source, tmp_path / "folder", path):
        with pytest.warns(gs.GemmascopeWarning, match="the window of local layers is 65 and the longest prompt 64: local"):
            gs.load(each)
    gs.load(make("lg", sliding_window=64))  # as wide as the context is no mistake
    gs.load(make("gg", sliding_window=65))  # nothing is local
