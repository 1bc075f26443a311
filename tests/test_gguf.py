"""GGUF files: tensors, config and tokenizer beside transformers' own reading of them, and files that cannot be read."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from checkpoints import checkpoint, checkpoint_3, prompt
from gguf_files import Vocabulary, write_gguf
from reference import error
from transformers import Gemma2ForCausalLM, Gemma3ForCausalLM

import gemmascope as gs
from gemmascope.checkpoints.folder import Checkpoint
from gemmascope.checkpoints.gguf.tensors import GGUFTensors, open_parts
from gemmascope.errors import CheckpointError, ConfigError, DeviceError
from gemmascope.tokens.gguf import tokenizer_of

SHAPE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 32, "query_pre_attn_scalar": 32,
                         "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")


def small(family: int = 2, kinds: str = "lglg", **shape: Any) -> Gemma2ForCausalLM | Gemma3ForCausalLM:
    if family == 2:
        return checkpoint(kinds, **{**SHAPE, **shape})
    return checkpoint_3("lllllg", factor=8.0, **{**SHAPE, **shape})


@pytest.mark.parametrize("kind", TYPES)
def test_tensors_are_those_that_the_gguf_package_reads(tmp_path: Path, kind: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", small(), kind)
    theirs = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}
    with Checkpoint(path) as ours:
        assert len(ours.stored) == len(theirs)
        expected = {
            "model.embed_tokens.weight": theirs["token_embd.weight"], "model.norm.weight": theirs["output_norm.weight"] - 1,
            "model.layers.3.mlp.down_proj.weight": theirs["blk.3.ffn_down.weight"],
        }  # fmt: skip
        for name, value in expected.items():
            tensor = ours.read(name)
            assert tuple(tensor.shape) == ours.stored[name].shape
            assert torch.equal(tensor.float(), torch.from_numpy(value.copy()).view(tensor.shape).float())


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("family", [2, 3])
def test_logits_and_weights_equal_transformers_reading_of_the_file(tmp_path: Path, kind: str, family: int) -> None:
    write_gguf(tmp_path / "m.gguf", small(family), kind)
    reader = Gemma2ForCausalLM if family == 2 else Gemma3ForCausalLM
    theirs = reader.from_pretrained(tmp_path, gguf_file="m.gguf", attn_implementation="eager").eval()
    ours = gs.load(tmp_path / "m.gguf")
    weights = dict(theirs.named_parameters())
    for name, parameter in ours.network.named_parameters():
        assert torch.equal(parameter, weights[name]), name
    source = small(family)  # for what the file does not say and transformers assumes otherwise: the scale of attention
    source.load_state_dict(theirs.state_dict())
    ids = prompt(19, seed=3)
    with torch.no_grad():
        oracle = source(torch.tensor([ids])).logits[0]
    if family == 3:  # the file has no base for local layers: Gemma 3's own is assumed
        assert ours.config.rope_theta_local == 10000.0
        oracle = theirs_with_local_base(source, ids)
    assert error(gs.trace(ids, model=ours).logits, oracle) < 1e-5


@torch.no_grad()
def theirs_with_local_base(source: Gemma3ForCausalLM, ids: list[int]) -> torch.Tensor:
    source.config.rope_parameters["sliding_attention"]["rope_theta"] = 10000.0
    again = Gemma3ForCausalLM(source.config).eval()
    again.load_state_dict(source.state_dict())
    return again(torch.tensor([ids])).logits[0]


@pytest.mark.parametrize("family", [2, 3])
def test_the_config_is_the_checkpoints(tmp_path: Path, family: int) -> None:
    source = small(family)
    config = gs.load(write_gguf(tmp_path / "m.gguf", source), device="meta").config
    expected = gs.load(source).config
    differing = {name for name, value in vars(expected).items() if value != getattr(config, name)}
    assert differing <= {"rope_theta_local"}


def test_the_parts_of_a_split_file_are_one_model(tmp_path: Path) -> None:
    source = small()
    write_gguf(tmp_path / "m.gguf", source, split=20)
    parts = sorted(tmp_path.glob("m-*-of-*.gguf"))
    assert len(parts) > 1
    for part in (parts[0], parts[-1]):
        for ours, theirs in zip(gs.load(part).network.parameters(), gs.load(source).network.parameters(), strict=True):
            # A norm's gain loses its last bits: the file holds 1 + gain.
            assert torch.equal(ours, theirs) if ours.dim() == 2 else torch.allclose(ours, theirs, atol=1e-6)
    parts[-1].unlink()
    with pytest.raises(CheckpointError, match=rf"one of {len(parts)} parts, and {parts[-1].name} is not in"):
        gs.load(parts[0])


def test_int8_of_a_file_is_int8_of_its_checkpoint(tmp_path: Path) -> None:
    source = small(hidden_size=128, intermediate_size=128)
    path = write_gguf(tmp_path / "m.gguf", source, vocabulary=vocabulary(61))
    source.load_state_dict(gs.load(path).network.state_dict(), strict=False)  # norms without the bits that 1 + gain lost
    source.save_pretrained(tmp_path / "folder")
    ids = prompt(9)
    from_file = gs.load(path, weights="int8", cache=tmp_path / "a", memory="60MB")
    from_folder = gs.load(tmp_path / "folder", weights="int8", cache=tmp_path / "b")
    assert torch.equal(gs.trace(ids, model=from_file).logits, gs.trace(ids, model=from_folder).logits)
    assert from_file.has_tokenizer
    again = gs.load(tmp_path / "a")  # the store by itself has the file's configuration and tokenizer
    assert torch.equal(gs.trace(ids, model=again).logits, gs.trace(ids, model=from_folder).logits)
    assert again.tokenizer.encode("abab ba") == from_file.tokenizer.encode("abab ba")


def test_an_unembedding_that_is_quantised_differently_is_said(tmp_path: Path) -> None:
    source = small()
    head = source.state_dict()["model.embed_tokens.weight"].numpy()
    noisy = head + np.random.default_rng(0).normal(scale=0.01, size=head.shape)
    with pytest.warns(gs.GemmascopeWarning, match=r"holds its unembedding beside its embedding, quantised differently"):
        model = gs.load(write_gguf(tmp_path / "m.gguf", source, tensors={"output.weight": noisy}))
    assert torch.equal(model.network.model.embed_tokens.weight, torch.from_numpy(head))
    gs.load(write_gguf(tmp_path / "same.gguf", source, tensors={"output.weight": head}))
    with pytest.raises(CheckpointError, match="differs from the embedding"):
        gs.load(write_gguf(tmp_path / "other.gguf", source, tensors={"output.weight": -head}))


# -- tokenizers --


def vocabulary(size: int, seed: int = 0) -> Vocabulary:
    """A vocabulary of single letters and of texts that merge from them, with Gemma's special tokens and bytes."""
    rng = random.Random(seed)
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "<unused0>", "  ", "\n\n", "<b>"]
    types = [3, 3, 3, 2, 3, 3, 3, 4, 4, 4]
    letters = [*"abcd", "▁", "\n", "é"]
    words: list[str] = []
    while len(words) < size - len(tokens) - len(letters) - (256 if size > 300 else 0):
        word = "".join(rng.choice(letters + words[-20:]) for _ in range(2))
        if word not in words and len(word) < 12 and "▁▁" not in word and "\n\n" not in word:
            words.append(word)
    n_bytes = 256 if size > 300 else 0
    all_tokens = [*tokens, *(f"<0x{b:02X}>" for b in range(n_bytes)), *words, *letters]
    all_types = [*types, *[6] * n_bytes, *[1] * (len(words) + len(letters))]
    return all_tokens, [-1000.0] * (len(tokens) + n_bytes) + [-float(i) for i in range(len(words) + len(letters))], all_types


def metadata_of(tmp_path: Path, words: Vocabulary, **extra: str) -> dict[str, object]:
    path = write_gguf(tmp_path / "t.gguf", small(vocab_size=len(words[0])), vocabulary=words, extra=extra)
    return dict(open_parts(path)[0].metadata)


@pytest.mark.parametrize("seed", range(3))
def test_tokens_are_those_of_sentencepiece(tmp_path: Path, seed: int) -> None:
    """The oracle: sentencepiece with the same pieces, scores and types, which is what llama.cpp rebuilds."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2 as pb

    words = vocabulary(700, seed)
    tokenizer = tokenizer_of(metadata_of(tmp_path, words), "t.gguf")
    assert tokenizer is not None
    proto = pb.ModelProto()
    for token, score, kind in zip(*words, strict=True):
        proto.pieces.add(piece=token.replace(" ", "▁"), score=score, type=kind)
    proto.trainer_spec.model_type, proto.trainer_spec.byte_fallback = 2, True
    proto.normalizer_spec.add_dummy_prefix = proto.normalizer_spec.remove_extra_whitespaces = False
    oracle = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    rng = random.Random(seed)
    for _ in range(200):
        text = "".join(rng.choice([*"abcd  é\n", "日", "🙂", "\n\n", "<b>", "x"]) for _ in range(rng.randrange(1, 30)))
        assert tokenizer.encode(text) == oracle.encode(text), text
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_chat_template_of_the_file_is_used(tmp_path: Path) -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model{% endif %}"
    )
    metadata = metadata_of(tmp_path, vocabulary(700), **{"tokenizer.chat_template": template})
    tokenizer = tokenizer_of(metadata, "t.gguf")
    assert tokenizer is not None
    text = tokenizer.chat([{"role": "user", "content": "ab"}])
    assert text == "<bos><start_of_turn>user\nab<end_of_turn><start_of_turn>model"
    ids = tokenizer.ids([{"role": "user", "content": "ab"}])
    assert ids[:2] == [2, 4]
    assert tokenizer.is_special(5)
    assert not tokenizer.is_special(6)
    model = gs.load(tmp_path / "t.gguf")
    assert model.config.eos_ids == (1, 5)


# -- files that cannot be read --


def cut(path: Path, at: int) -> Path:
    path.write_bytes(path.read_bytes()[:at])
    return path


def test_files_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "m.gguf", small(), "Q8_0", vocabulary=vocabulary(61)).read_bytes()

    def file(content: bytes, name: str = "x.gguf") -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    for at in (6, 20, 100, 900):
        with pytest.raises(CheckpointError, match=r"cut short or damaged: .* inside its header"):
            gs.load(file(whole[:at]))
    with pytest.raises(CheckpointError, match=r"cut short: tensor '.*' ends at [0-9,]+ bytes, the file at [0-9,]+: fetch"):
        gs.load(file(whole[:-50]))
    with pytest.raises(CheckpointError, match=r"does not begin as GGUF files do"):
        gs.load(file(b"nothing"))
    with pytest.raises(CheckpointError, match="GGUF of version 9"):
        gs.load(file(whole[:4] + struct.pack("<I", 9) + whole[8:]))
    with pytest.raises(CheckpointError, match=r"announces"):
        gs.load(file(whole[:8] + struct.pack("<Q", 2**60) + whole[16:]))
    with pytest.raises(ConfigError, match=r"architecture 'llama'; gemmascope runs 'gemma2' and 'gemma3'"):
        gs.load(write_gguf(tmp_path / "l.gguf", small(), architecture="llama"))
    with pytest.raises(ConfigError, match=r"'gemma', which is Gemma 1"):
        gs.load(write_gguf(tmp_path / "g.gguf", small(), architecture="gemma"))
    with pytest.raises(CheckpointError, match=r"'blk.0.attn_other.weight' of .* is in no Gemma"):
        gs.load(write_gguf(tmp_path / "o.gguf", small(), tensors={"blk.0.attn_other.weight": np.ones((2, 2))}))
    with pytest.raises(DeviceError, match="with memory= give weights='int8' as well"):
        gs.load(tmp_path / "m.gguf", memory="1GB")
    with pytest.raises(CheckpointError, match=r"A GGUF file is loaded by its own path: gs.load\('.*gguf'\)"):
        gs.load(tmp_path)


def test_a_type_that_the_package_does_not_know_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", small())
    headers = open_parts(path)
    entries = tuple(
        e if e.name != "token_embd.weight" else type(e)(e.name, e.shape, 999, e.offset) for e in headers[0].entries
    )
    with pytest.raises(CheckpointError, match=r"has type 999, which the gguf package does not know"):
        GGUFTensors([type(headers[0])(path, headers[0].metadata, entries)])


def test_a_tokenizer_of_another_kind_is_refused(tmp_path: Path) -> None:
    metadata = metadata_of(tmp_path, vocabulary(700))
    with pytest.raises(CheckpointError, match="of type 'gpt2'; Gemma's is 'llama'"):
        tokenizer_of({**metadata, "tokenizer.ggml.model": "gpt2"}, "t.gguf")
    with pytest.raises(CheckpointError, match="as many scores and types as tokens"):
        tokenizer_of({**metadata, "tokenizer.ggml.scores": [1.0]}, "t.gguf")
    assert tokenizer_of({}, "t.gguf") is None


def test_the_planner_reads_the_shape_of_a_file(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", small(3), "Q4_0")
    plan = gs.plan(path)
    assert plan.config == gs.load(path, device="meta").config
