"""What nine sites of every layer cost, read in either order, beside TransformerLens' run_with_cache of the same names.

Each turn runs the prompt and ends with all logits and all values. Ours: kept while the run goes on (keep=), or read
afterwards, which runs each layer a second time; with sites or layers outermost, or a site of all layers at once (t[site]).
Where TransformerLens is not installed, the rival is transformers with hooks that hold the values. The numbers are held to
the rival's to rounding.

Run: python tests/benchmarks/reading.py [--lengths 16 128 512] [--rounds 7] [--small] [--json FILE]
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from measuring import DisagreementError, Table, Turn, in_turn, machine, parser, record
from rivals import SHAPE, SMALL, checkpoint, config_of, prompt
from torch import Tensor
from transformers import Gemma2ForCausalLM

import gemmascope as gs

Values = dict[tuple[str, int], Tensor]

HOOKS = {
    "resid_pre": "hook_resid_pre", "q": "attn.hook_q", "k": "attn.hook_k", "v": "attn.hook_v",
    "pattern": "attn.hook_pattern", "z": "attn.hook_z",
    "attn_out": "hook_attn_out", "mlp_act": "mlp.hook_post", "mlp_out": "hook_mlp_out",
}  # fmt: skip
TURNS = ("kept_by_site", "kept_by_layer", "by_site", "by_layer", "arrays")
COLUMNS = (
    "positions",
    "rival",
    *(f"{name}_ms" for name in TURNS),
    "rival_ms",
    *(f"{name}/rival" for name in TURNS),
    "apart",
)
ALLOWED = 1e-4


def transformer_lens(source: Gemma2ForCausalLM, ids: Tensor) -> Callable[[], Values]:
    """run_with_cache of the nine names, by TransformerBridge over the same weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(source.config.vocab_size)}, unk_token="t3"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    tokens = {"bos_token": "t2", "eos_token": "t1", "pad_token": "t0", "unk_token": "t3"}
    with tempfile.TemporaryDirectory() as folder:  # it loads by name, and wants a tokenizer
        source.save_pretrained(folder)
        PreTrainedTokenizerFast(tokenizer_object=words, **tokens).save_pretrained(folder)
        bridge = TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32)
    layers = range(source.config.num_hidden_layers)
    names = [f"blocks.{layer}.{hook}" for layer in layers for hook in HOOKS.values()]

    def run() -> Values:
        with torch.inference_mode():
            _, cache = bridge.run_with_cache(ids[None], names_filter=names)
        return {(site, layer): cache[f"blocks.{layer}.{hook}"][0] for layer in layers for site, hook in HOOKS.items()}

    return run


def hooks(source: Gemma2ForCausalLM, ids: Tensor) -> Callable[[], Values]:
    """transformers, with hooks that hold what goes into and out of its modules."""
    n_layers, d_head = source.config.num_hidden_layers, source.config.head_dim

    def run() -> Values:
        values: Values = {}

        def hold(site: str, layer: int, *, entering: bool = False) -> Callable[..., None]:
            def keep(module: Any, args: Any, out: Any = None) -> None:
                value = args[0] if entering else out[0] if isinstance(out, tuple) else out
                values[site, layer] = value[0] if site not in "qkvz" else value[0].unflatten(-1, (-1, d_head))

            return keep

        handles = []
        for n, layer in enumerate(source.model.layers):
            attn, mlp = layer.self_attn, layer.mlp
            handles.append(layer.input_layernorm.register_forward_pre_hook(hold("resid_pre", n, entering=True)))
            handles.append(attn.o_proj.register_forward_pre_hook(hold("z", n, entering=True)))
            handles.append(mlp.down_proj.register_forward_pre_hook(hold("mlp_act", n, entering=True)))
            outputs = {
                "q": attn.q_proj, "k": attn.k_proj, "v": attn.v_proj,
                "attn_out": layer.post_attention_layernorm, "mlp_out": layer.post_feedforward_layernorm,
            }  # fmt: skip
            handles += [module.register_forward_hook(hold(site, n)) for site, module in outputs.items()]
        with torch.inference_mode():
            out = source(ids[None], use_cache=False, output_attentions=True)
        for handle in handles:
            handle.remove()
        return values | {("pattern", n): out.attentions[n][0] for n in range(n_layers)}

    return run


def turns(model: Any, ids: Tensor) -> dict[str, Callable[[], Values]]:
    """Ours, in each order."""
    by_site = [(site, layer) for site in HOOKS for layer in range(model.n_layers)]
    by_layer = [(site, layer) for layer in range(model.n_layers) for site in HOOKS]

    def read(keys: list[tuple[str, int]], keep: Any) -> Values:
        t = gs.trace(ids, model=model, keep=keep)
        assert isinstance(t, gs.Trace)
        assert len(t.logits) == len(ids)
        return {key: t[key] for key in keys}

    def arrays() -> Values:
        t = gs.trace(ids, model=model)
        assert t.logits is not None
        found = {site: t[site].values for site in HOOKS}
        return {(site, layer): torch.from_numpy(found[site][layer]) for site, layer in by_site}

    return {
        "kept_by_site": lambda: read(by_site, list(HOOKS)),
        "kept_by_layer": lambda: read(by_layer, list(HOOKS)),
        "by_site": lambda: read(by_site, []),
        "by_layer": lambda: read(by_layer, []),
        "arrays": arrays,
    }


def apart(ours: Values, theirs: Values) -> float:
    """The largest difference of a site, as a part of its largest number."""
    return max(float((ours[key] - theirs[key]).abs().max() / theirs[key].abs().max()) for key in theirs)


def main() -> None:
    arguments = parser(__doc__, lengths=(16, 128, 512), rounds=7)
    asked = arguments.parse_args()
    torch.set_num_threads(1)
    shape, lengths, rounds = (SMALL, [16], 2) if asked.small else (SHAPE, asked.lengths, asked.rounds)
    source = checkpoint(shape)
    model = gs.load(source)
    with_lens = find_spec("transformer_lens") is not None
    name = "TransformerLens" if with_lens else "transformers"
    print(machine())
    table = Table(f"nine sites of {model.n_layers} layers, beside {name}, one thread, float32", COLUMNS)
    for length in lengths:
        ids = prompt(length, config_of(source).vocab_size, 5)
        rival = (transformer_lens if with_lens else hooks)(source, ids)
        ours = turns(model, ids)
        theirs = rival()
        distance = max(apart(run(), theirs) for run in ours.values())
        if not distance <= ALLOWED:
            raise DisagreementError(f"the sites differ by {distance:.1e} of their scale")
        took = in_turn({**{key: Turn(run) for key, run in ours.items()}, "rival": Turn(rival)}, rounds)
        table.add(
            positions=length, rival=name, apart=distance, rival_ms=1e3 * took.median("rival"),
            **{f"{key}_ms": 1e3 * took.median(key) for key in TURNS},
            **{f"{key}/rival": took.ratio(key, "rival") for key in TURNS},
        )  # fmt: skip
    record(asked.json, [table])


if __name__ == "__main__":
    main()
