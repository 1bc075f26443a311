"""gemmascope: look inside Gemma 2.

gs.trace(prompt) is the front door. Names are imported when they are first used, so that importing the package costs no
more than importing torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# The public names, by the module that holds them.
_WHERE = {
    "load": "gemmascope.weights.load",
    "quantize": "gemmascope.weights.streamed",
    "plan": "gemmascope.weights.plan",
    "trace": "gemmascope.run.trace",
    "Trace": "gemmascope.run.trace",
    "open_trace": "gemmascope.run.saving",
    "generate": "gemmascope.run.generate",
    "Generation": "gemmascope.run.generation",
    "Model": "gemmascope.model.model",
    "GemmaConfig": "gemmascope.config",
    "GemmascopeError": "gemmascope.errors",
    "GemmascopeWarning": "gemmascope.errors",
    "SITES": "gemmascope.sites",
    "patch": "gemmascope.run.make_edits",
    "ablate": "gemmascope.run.make_edits",
    "ablate_direction": "gemmascope.run.make_edits",
    "add": "gemmascope.run.make_edits",
    "scale": "gemmascope.run.make_edits",
    "knockout": "gemmascope.run.make_edits",
    "edit": "gemmascope.run.make_edits",
    "sweep": "gemmascope.run.sweep",
    "path_sweep": "gemmascope.run.path",
    "attribute": "gemmascope.analysis.attribution",
    "compare": "gemmascope.analysis.compare",
    "Comparison": "gemmascope.analysis.comparison",
    "SweepResult": "gemmascope.run.result",
    "open_sweep": "gemmascope.run.result",
    "direction": "gemmascope.analysis.steering",
    "Direction": "gemmascope.analysis.direction",
    "strength_sweep": "gemmascope.analysis.strengths",
    "StrengthSweep": "gemmascope.analysis.strength_result",
    "head_scores": "gemmascope.analysis.heads",
    "HeadScores": "gemmascope.analysis.heads",
    "attention_summary": "gemmascope.analysis.attention_summary",
    "AttentionSummary": "gemmascope.analysis.attention_summary",
    "composition": "gemmascope.analysis.composition",
    "Composition": "gemmascope.analysis.composition",
    "lens": "gemmascope.analysis.lens",
    "Lens": "gemmascope.analysis.lens",
    "direct_logits": "gemmascope.analysis.direct",
    "DirectLogits": "gemmascope.analysis.direct",
    "load_sae": "gemmascope.dictionaries.load",
    "Dictionary": "gemmascope.dictionaries.dictionary",
    "Features": "gemmascope.dictionaries.activations",
    "splice": "gemmascope.dictionaries.splice",
    "feature_sweep": "gemmascope.dictionaries.features",
    "FeatureSweep": "gemmascope.dictionaries.features",
    "attention_view": "gemmascope.widgets.attention",
    "lens_view": "gemmascope.widgets.lens",
    "stream_view": "gemmascope.widgets.stream",
    "sae_view": "gemmascope.widgets.grids",
    "sweep_view": "gemmascope.widgets.grids",
    "plan_view": "gemmascope.widgets.plan_view",
    "View": "gemmascope.widgets.page",
    "patching_lab": "gemmascope.widgets.lab",
    "head_lab": "gemmascope.widgets.head_lab",
    "HeadLab": "gemmascope.widgets.head_lab",
    "steer_lab": "gemmascope.widgets.steer_lab",
    "SteerLab": "gemmascope.widgets.steer_lab",
    "logit_diff": "gemmascope.analysis.metrics",
    "answer_prob": "gemmascope.analysis.metrics",
    "answer_logprob": "gemmascope.analysis.metrics",
    "rank": "gemmascope.analysis.metrics",
    "kl_from": "gemmascope.analysis.metrics",
}
_SUBMODULES = ("errors", "prompts", "sites", "workshop")

if TYPE_CHECKING:
    from gemmascope import errors, prompts, sites, workshop
    from gemmascope.analysis.attention_summary import AttentionSummary, attention_summary
    from gemmascope.analysis.attribution import attribute
    from gemmascope.analysis.compare import compare
    from gemmascope.analysis.comparison import Comparison
    from gemmascope.analysis.composition import Composition, composition
    from gemmascope.analysis.direct import DirectLogits, direct_logits
    from gemmascope.analysis.direction import Direction
    from gemmascope.analysis.heads import HeadScores, head_scores
    from gemmascope.analysis.lens import Lens, lens
    from gemmascope.analysis.metrics import answer_logprob, answer_prob, kl_from, logit_diff, rank
    from gemmascope.analysis.steering import direction
    from gemmascope.analysis.strength_result import StrengthSweep
    from gemmascope.analysis.strengths import strength_sweep
    from gemmascope.config import GemmaConfig
    from gemmascope.dictionaries.activations import Features
    from gemmascope.dictionaries.dictionary import Dictionary
    from gemmascope.dictionaries.features import FeatureSweep, feature_sweep
    from gemmascope.dictionaries.load import load_sae
    from gemmascope.dictionaries.splice import splice
    from gemmascope.errors import GemmascopeError, GemmascopeWarning
    from gemmascope.model.model import Model
    from gemmascope.run.generate import generate
    from gemmascope.run.generation import Generation
    from gemmascope.run.make_edits import ablate, ablate_direction, add, edit, knockout, patch, scale
    from gemmascope.run.path import path_sweep
    from gemmascope.run.result import SweepResult, open_sweep
    from gemmascope.run.saving import open_trace
    from gemmascope.run.sweep import sweep
    from gemmascope.run.trace import Trace, trace
    from gemmascope.sites import SITES
    from gemmascope.weights.load import load
    from gemmascope.weights.plan import plan
    from gemmascope.weights.streamed import quantize
    from gemmascope.widgets.attention import attention_view
    from gemmascope.widgets.grids import sae_view, sweep_view
    from gemmascope.widgets.head_lab import HeadLab, head_lab
    from gemmascope.widgets.lab import patching_lab
    from gemmascope.widgets.lens import lens_view
    from gemmascope.widgets.page import View
    from gemmascope.widgets.plan_view import plan_view
    from gemmascope.widgets.steer_lab import SteerLab, steer_lab
    from gemmascope.widgets.stream import stream_view

__all__ = [
    "SITES",
    "AttentionSummary",
    "Comparison",
    "Composition",
    "Dictionary",
    "DirectLogits",
    "Direction",
    "FeatureSweep",
    "Features",
    "GemmaConfig",
    "GemmascopeError",
    "GemmascopeWarning",
    "Generation",
    "HeadLab",
    "HeadScores",
    "Lens",
    "Model",
    "SteerLab",
    "StrengthSweep",
    "SweepResult",
    "Trace",
    "View",
    "ablate",
    "ablate_direction",
    "add",
    "answer_logprob",
    "answer_prob",
    "attention_summary",
    "attention_view",
    "attribute",
    "compare",
    "composition",
    "direct_logits",
    "direction",
    "edit",
    "errors",
    "feature_sweep",
    "generate",
    "head_lab",
    "head_scores",
    "kl_from",
    "knockout",
    "lens",
    "lens_view",
    "load",
    "load_sae",
    "logit_diff",
    "open_sweep",
    "open_trace",
    "patch",
    "patching_lab",
    "path_sweep",
    "plan",
    "plan_view",
    "prompts",
    "quantize",
    "rank",
    "sae_view",
    "scale",
    "sites",
    "splice",
    "steer_lab",
    "stream_view",
    "strength_sweep",
    "sweep",
    "sweep_view",
    "trace",
    "workshop",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = getattr(importlib.import_module(_WHERE[name]), name)
    elif name in _SUBMODULES:
        value = importlib.import_module(f"gemmascope.{name}")
    else:
        raise AttributeError(f"gemmascope has no {name!r}; it has {', '.join(__all__)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
