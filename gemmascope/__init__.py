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
    "load": "gemmascope.loading.load",
    "quantize": "gemmascope.loading.network",
    "plan": "gemmascope.memory.plan",
    "trace": "gemmascope.run.trace",
    "Trace": "gemmascope.run.trace",
    "open_trace": "gemmascope.run.save",
    "generate": "gemmascope.generation.generate",
    "Generation": "gemmascope.generation.result",
    "Model": "gemmascope.model.model",
    "GemmaConfig": "gemmascope.config",
    "GemmascopeError": "gemmascope.errors",
    "GemmascopeWarning": "gemmascope.errors",
    "SITES": "gemmascope.sites",
    "patch": "gemmascope.edits.make",
    "ablate": "gemmascope.edits.make",
    "ablate_direction": "gemmascope.edits.make",
    "add": "gemmascope.edits.make",
    "scale": "gemmascope.edits.make",
    "knockout": "gemmascope.edits.make",
    "edit": "gemmascope.edits.make",
    "sweep": "gemmascope.sweeps.sweep",
    "path_sweep": "gemmascope.sweeps.paths.path_sweep",
    "attribute": "gemmascope.sweeps.attribution",
    "compare": "gemmascope.analysis.compare",
    "Comparison": "gemmascope.analysis.comparison",
    "SweepResult": "gemmascope.sweeps.result",
    "open_sweep": "gemmascope.sweeps.result",
    "direction": "gemmascope.steering.directions",
    "Direction": "gemmascope.steering.direction",
    "strength_sweep": "gemmascope.steering.strengths",
    "StrengthSweep": "gemmascope.steering.strength_result",
    "head_scores": "gemmascope.analysis.heads",
    "HeadScores": "gemmascope.analysis.heads",
    "attention_summary": "gemmascope.analysis.attention_summary",
    "AttentionSummary": "gemmascope.analysis.attention_summary",
    "composition": "gemmascope.analysis.composition",
    "Composition": "gemmascope.analysis.composition",
    "lens": "gemmascope.analysis.lens",
    "Lens": "gemmascope.analysis.lens",
    "direct_logits": "gemmascope.analysis.direct_logits",
    "DirectLogits": "gemmascope.analysis.direct_logits",
    "load_sae": "gemmascope.sae.load",
    "Dictionary": "gemmascope.sae.dictionary",
    "Features": "gemmascope.sae.features",
    "splice": "gemmascope.sae.splice",
    "feature_sweep": "gemmascope.sae.feature_sweep",
    "FeatureSweep": "gemmascope.sae.feature_sweep",
    "attention_view": "gemmascope.views.attention",
    "lens_view": "gemmascope.views.lens",
    "stream_view": "gemmascope.views.stream",
    "sae_view": "gemmascope.views.grids",
    "sweep_view": "gemmascope.views.grids",
    "plan_view": "gemmascope.views.plan",
    "View": "gemmascope.views.page",
    "patching_lab": "gemmascope.labs.patching.lab",
    "head_lab": "gemmascope.labs.heads",
    "HeadLab": "gemmascope.labs.heads",
    "steer_lab": "gemmascope.labs.steering",
    "SteerLab": "gemmascope.labs.steering",
    "logit_diff": "gemmascope.sweeps.metrics",
    "answer_prob": "gemmascope.sweeps.metrics",
    "answer_logprob": "gemmascope.sweeps.metrics",
    "rank": "gemmascope.sweeps.metrics",
    "kl_from": "gemmascope.sweeps.metrics",
}
_SUBMODULES = ("errors", "prompts", "sites", "workshop")

if TYPE_CHECKING:
    from gemmascope import errors, prompts, sites, workshop
    from gemmascope.analysis.attention_summary import AttentionSummary, attention_summary
    from gemmascope.analysis.compare import compare
    from gemmascope.analysis.comparison import Comparison
    from gemmascope.analysis.composition import Composition, composition
    from gemmascope.analysis.direct_logits import DirectLogits, direct_logits
    from gemmascope.analysis.heads import HeadScores, head_scores
    from gemmascope.analysis.lens import Lens, lens
    from gemmascope.config import GemmaConfig
    from gemmascope.edits.make import ablate, ablate_direction, add, edit, knockout, patch, scale
    from gemmascope.errors import GemmascopeError, GemmascopeWarning
    from gemmascope.generation.generate import generate
    from gemmascope.generation.result import Generation
    from gemmascope.labs.heads import HeadLab, head_lab
    from gemmascope.labs.patching.lab import patching_lab
    from gemmascope.labs.steering import SteerLab, steer_lab
    from gemmascope.loading.load import load
    from gemmascope.loading.network import quantize
    from gemmascope.memory.plan import plan
    from gemmascope.model.model import Model
    from gemmascope.run.save import open_trace
    from gemmascope.run.trace import Trace, trace
    from gemmascope.sae.dictionary import Dictionary
    from gemmascope.sae.feature_sweep import FeatureSweep, feature_sweep
    from gemmascope.sae.features import Features
    from gemmascope.sae.load import load_sae
    from gemmascope.sae.splice import splice
    from gemmascope.sites import SITES
    from gemmascope.steering.direction import Direction
    from gemmascope.steering.directions import direction
    from gemmascope.steering.strength_result import StrengthSweep
    from gemmascope.steering.strengths import strength_sweep
    from gemmascope.sweeps.attribution import attribute
    from gemmascope.sweeps.metrics import answer_logprob, answer_prob, kl_from, logit_diff, rank
    from gemmascope.sweeps.paths.path_sweep import path_sweep
    from gemmascope.sweeps.result import SweepResult, open_sweep
    from gemmascope.sweeps.sweep import sweep
    from gemmascope.views.attention import attention_view
    from gemmascope.views.grids import sae_view, sweep_view
    from gemmascope.views.lens import lens_view
    from gemmascope.views.page import View
    from gemmascope.views.plan import plan_view
    from gemmascope.views.stream import stream_view

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
