"""Gemma 3 beside transformers and beside a plain computation in float64: every site, config, checkpoint and tool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import checkpoint_3, config_of, every_site, model_of, prompt
from reference import Reference, error
from transformers import Gemma3Config, Gemma3ForCausalLM, Gemma3ForConditionalGeneration, Gemma3TextConfig

import gemmascope as gs
from gemmascope.config import PRESETS, GemmaConfig
from gemmascope.errors import ConfigError
from gemmascope.model.layout import Block, Layout, PrefixKV
from gemmascope.model.maths import rms_scale
from gemmascope.model.prefix_attention import PrefixAttention

LAYOUTS = ("lg", "gl", "llg", "g", "llllllg")


@pytest.mark.parametrize(("kinds", "factor"), [("lg", 1.0), ("gll", 8.0), ("llllg", 4.0)])
def test_every_site_equals_a_plain_computation(kinds: str, factor: float) -> None:
    source = checkpoint_3(kinds, seed=3, factor=factor)
    ids = prompt(13, seed=5)
    oracle = Reference(source).run(ids)
    values = every_site(model_of(source), ids)
    assert {"q_raw", "k_raw"} < {site for site, _ in values}
    for (site, layer), value in values.items():
        assert error(value, oracle[site, layer]) < 1e-5, site


@pytest.mark.parametrize("kinds", LAYOUTS)
@pytest.mark.parametrize("seed", range(2))
def test_logits_and_patterns_equal_transformers(kinds: str, seed: int) -> None:
    source = checkpoint_3(kinds, seed, factor=8.0 if seed else 1.0)
    ids = prompt(23, seed=seed)
    with torch.no_grad():
        theirs = source(torch.tensor([ids]), output_attentions=True, output_hidden_states=True)
    t = gs.trace(ids, model=gs.load(source))
    assert error(t.logits, theirs.logits[0]) < 1e-5
    for layer, pattern in enumerate(theirs.attentions):
        assert error(t["pattern", layer], pattern[0]) < 1e-5
        assert error(t["resid_pre", layer], theirs.hidden_states[layer][0]) < 1e-5


def test_generation_beyond_the_window_equals_transformers() -> None:
    source = checkpoint_3("llgl", seed=2, factor=8.0)
    model, prompts = gs.load(source), [prompt(9, seed=1), prompt(3, seed=2)]
    for ids in prompts:
        ours = gs.generate(ids, model=model, max_new_tokens=14, temperature=0)
        theirs = source.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), max_new_tokens=14, do_sample=False
        )
        assert ours.ids.tolist() == theirs[0].tolist()


@pytest.mark.parametrize("site", ["resid_pre", "mlp_out"])
def test_a_sweep_equals_runs_that_are_patched_one_by_one(site: str) -> None:
    model = gs.load(checkpoint_3("lgl", seed=4))
    clean, corrupt, metric = prompt(9, seed=1), prompt(9, seed=2), gs.logit_diff(3, 5)
    values = gs.sweep(clean, corrupt, metric, site=site, model=model, progress=False).values[0]
    t = gs.trace(clean, model=model)
    for layer, at in [(0, 4), (1, 8), (2, 1), (2, 8)]:
        edited = gs.trace(corrupt, model=model, edits=[gs.patch(site, t, layer=layer, pos=at)])
        assert abs(float(edited.logits[-1, 3] - edited.logits[-1, 5]) - float(values[layer, at])) < 1e-4


@pytest.mark.parametrize("site", ["q_raw", "k_raw", "q", "z", "pattern"])
def test_a_sweep_over_heads_is_finite_and_changes_something(site: str) -> None:
    model = gs.load(checkpoint_3("lgl", seed=4))
    result = gs.sweep(
        prompt(9, seed=1),
        prompt(9, seed=2),
        gs.logit_diff(3, 5),
        site=site,
        by=("layer", "head"),
        model=model,
        progress=False,
    )
    assert np.isfinite(np.asarray(result.values)).all()
    assert np.asarray(result.values).std() > 0


def test_scores_follow_from_the_qk_matrix_and_the_scales_of_the_norms() -> None:
    model = gs.load(checkpoint_3("gl", seed=6, factor=2.0))
    ids = prompt(7, seed=3)
    t = gs.trace(ids, model=model)
    for layer in (0, 1):
        rows = t["resid_pre", layer].float()
        rows = rows * rms_scale(rows, model.config.norm_eps)
        for head in (0, 5):
            q_scale = rms_scale(t["q_raw", layer], model.config.norm_eps)[:, head, 0]
            k_scale = rms_scale(t["k_raw", layer], model.config.norm_eps)[:, head // 2, 0]
            for q_pos, k_pos in ((6, 6), (6, 4), (3, 0)):
                matrix = model.layer(layer).qk(head, distance=q_pos - k_pos)
                score = rows[q_pos] @ matrix.left @ matrix.right @ rows[k_pos] * q_scale[q_pos] * k_scale[k_pos]
                assert float(abs(score - t["scores", layer][head, q_pos, k_pos])) < 1e-4


def test_int8_streamed_equals_int8_resident(tmp_path: Path) -> None:
    checkpoint_3("lgl", hidden_size=256, intermediate_size=256, head_dim=64, sliding_window=4).save_pretrained(
        tmp_path / "c"
    )
    ids = prompt(11)
    resident = gs.load(tmp_path / "c", weights="int8", cache=tmp_path / "int8")
    streamed = gs.load(tmp_path / "c", weights="int8", cache=tmp_path / "int8", memory="25MB")
    plain = gs.load(tmp_path / "c")
    a, b, c = (gs.trace(ids, model=model).logits for model in (resident, streamed, plain))
    assert torch.equal(a, b)
    assert 0 < error(a, c) < 0.2


# -- configurations and checkpoints --


@pytest.mark.parametrize("kinds", ["lg", "llllll"])
@pytest.mark.parametrize("factor", [1.0, 8.0])
def test_a_config_survives_transformers(kinds: str, factor: float) -> None:
    ours = config_of(checkpoint_3(kinds, factor=factor))
    theirs = Gemma3TextConfig(**{k: v for k, v in ours.to_dict().items() if k not in ("architectures", "model_type")})
    assert GemmaConfig.from_dict(theirs.to_dict()) == ours == GemmaConfig.from_dict(ours.to_dict())
    assert ours.family == "Gemma 3"


PUBLISHED = {
    "3-270m": {
        "model_type": "gemma3_text", "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18,
        "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 262144, "sliding_window": 512,
        "max_position_embeddings": 32768, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "rope_scaling": None,
        "_sliding_window_pattern": 6, "eos_token_id": [1, 106], "query_pre_attn_scalar": 256,
    },
    "3-4b": {
        "model_type": "gemma3", "eos_token_id": [1, 106], "vision_config": {"model_type": "siglip_vision_model"},
        "text_config": {
            "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
        },
    },
    "3-27b": {
        "model_type": "gemma3", "eos_token_id": [1, 106],
        "text_config": {
            "model_type": "gemma3_text", "hidden_size": 5376, "intermediate_size": 21504, "num_hidden_layers": 62,
            "num_attention_heads": 32, "num_key_value_heads": 16, "head_dim": 128, "query_pre_attn_scalar": 168,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
        },
    },
}  # fmt: skip


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_configurations_are_the_presets(size: str) -> None:
    assert GemmaConfig.from_dict(PUBLISHED[size]) == PRESETS[size]


@pytest.mark.parametrize("size", [size for size in PRESETS if size.startswith("3-")])
def test_parameters_are_counted_as_transformers_has_them(size: str) -> None:
    fields = {k: v for k, v in PRESETS[size].to_dict().items() if k not in ("architectures", "model_type")}
    with torch.device("meta"):
        theirs = Gemma3ForCausalLM(Gemma3TextConfig(**fields))
    assert PRESETS[size].n_params == sum(p.numel() for p in theirs.parameters())


def _multimodal(tmp_path: Path) -> Gemma3ForConditionalGeneration:
    text = checkpoint_3("lg", seed=7, factor=8.0).config.to_dict()
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
              "patch_size": 14}  # fmt: skip
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, attn_implementation="eager",
                     boi_token_index=57, eoi_token_index=58, image_token_index=59)
    ).eval()  # fmt: skip
    model.save_pretrained(tmp_path)
    return model


@torch.no_grad()
def test_the_text_model_of_a_multimodal_checkpoint_is_loaded(tmp_path: Path) -> None:
    whole = _multimodal(tmp_path)
    ids = prompt(9, vocab_size=57)
    theirs = whole(torch.tensor([ids])).logits[0]
    for source in (whole, tmp_path):
        assert error(gs.trace(ids, model=gs.load(source)).logits, theirs) < 1e-5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'yarn'"),
        ({"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}}, "in sliding_attention"),
        ({"rope_local_base_freq": "x"}, "rope_local_base_freq"),
        ({"sliding_window_pattern": -1, "layer_types": None}, "sliding_window_pattern"),
    ],
)
def test_a_gemma_3_that_differs_is_refused(changes: dict[str, Any], message: str) -> None:
    content = {k: v for k, v in PRESETS["3-270m"].to_dict().items() if not k.startswith("rope") or k not in changes}
    if "rope_parameters" in changes:
        content = {k: v for k, v in content.items() if not k.startswith("rope")}
    with pytest.raises(ConfigError, match=message):
        GemmaConfig.from_dict(content | changes)


def test_norms_of_queries_in_a_gemma_2_are_refused(tmp_path: Path) -> None:
    source = checkpoint_3("lg")
    source.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content = {k: v for k, v in content.items() if not k.startswith("rope")} | {"model_type": "gemma2"}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(gs.errors.CheckpointError, match=r"q_norm|k_norm"):
        gs.load(tmp_path)


# -- attention without a soft cap --


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("size", [1.0, 40.0])
def test_runs_behind_a_prefix_attend_without_a_cap(window: int | None, size: float) -> None:
    """Scores of hundreds, whose exp float32 cannot hold, on either side of where the runs begin."""
    draw = torch.Generator().manual_seed(3)
    n_pos, heads, n_kv, d_head = 24, 4, 2, 8
    blocks = [Block(0, 2, 5, 0, 19), Block(10, 1, 9, 2, 15, 4), Block(19, 3, 1, 3, 23), Block(22, 1, 12, 6, 12)]
    layout = Layout.of_blocks(blocks)
    k_all, v_all = (torch.randn(n_kv, n_pos, d_head, generator=draw) for _ in range(2))
    k_all[:, 3] *= 3  # a key of the prefix that outweighs the runs' own
    prefix = PrefixKV(k_all * size, v_all)
    k, v = (torch.randn(layout.n_rows, n_kv, d_head, generator=draw) for _ in range(2))
    k *= size
    q = torch.randn(layout.query_firsts[-1], heads, d_head, generator=draw)
    with torch.no_grad():
        found = PrefixAttention(0.5, None, window)(q, k, v, layout.with_prefixes([prefix] * len(blocks)))
    at = 0
    for block in blocks:
        for run in range(block.count):
            own = slice(block.first + run * block.length, block.first + (run + 1) * block.length)
            keys = torch.cat((prefix.k[:, : block.start], k[own].transpose(0, 1)), 1).double()
            values = torch.cat((prefix.v[:, : block.start], v[own].transpose(0, 1)), 1).double()
            for row in range(block.n_queries):
                pos = block.stop - block.n_queries + row
                seen = slice(0 if window is None else max(0, pos - window + 1), pos + 1)
                for head in range(heads):
                    scores = keys[head // 2, seen] @ q[at, head].double() * 0.5
                    expected = scores.softmax(0) @ values[head // 2, seen]
                    assert torch.allclose(found[at, head].double(), expected, atol=1e-4), (block, row, head)
                at += 1
    assert at == len(q)
