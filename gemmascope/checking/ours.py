"""This package's answers to the questions."""

from __future__ import annotations

import torch
from torch import Tensor

from gemmascope.checking.questions import GENERATED, LAST_POSITIONS, NEW_TOKENS, Cell, Questions
from gemmascope.generation.generate import generate
from gemmascope.model.model import Model
from gemmascope.run.tracing import trace
from gemmascope.sweeps.metrics import logit_diff
from gemmascope.sweeps.sweep import sweep


def logits_of(model: Model, questions: Questions) -> list[Tensor]:
    """The soft-capped logits of each prompt, [pos, vocab]."""
    return [trace(list(ids), model=model).logits.float().cpu() for ids in questions.prompts]


def patterns_of(model: Model, questions: Questions) -> list[Tensor]:
    """The attention patterns of each prompt, [layer, head, q_pos, k_pos]."""
    traces = [trace(list(ids), model=model) for ids in questions.prompts]
    return [torch.stack([t["pattern", layer].float().cpu() for layer in range(model.n_layers)]) for t in traces]


def long_of(model: Model, questions: Questions) -> Tensor:
    """The logits of the last positions of the long prompt, [pos, vocab]."""
    assert questions.long is not None
    t = trace(list(questions.long), model=model)
    with torch.no_grad():
        return model.network.unembed(t.residuals[-1][-LAST_POSITIONS:]).float().cpu()


def generated_of(model: Model, questions: Questions) -> list[list[int]]:
    """The new token ids after the first prompts, greedily."""
    results = []
    for ids in questions.prompts[:GENERATED]:
        result = generate(list(ids), model=model, max_new_tokens=NEW_TOKENS, show=False)
        results.append(result.ids[result.n_prompt :].tolist())
    return results


def effects_of(model: Model, questions: Questions) -> dict[Cell, float]:
    """By cell, what patching it changes; from one sweep for each site."""
    metric = logit_diff(questions.answer, questions.against)
    effects: dict[Cell, float] = {}
    for site, axis in (("resid_pre", "pos"), ("z", "head")):
        result = sweep(
            list(questions.clean), list(questions.corrupt), metric, site=site, by=("layer", axis), model=model,
            layer=list(questions.layers), progress=False,
        )  # fmt: skip
        for cell in questions.cells:
            if cell[0] == site:
                effects[cell] = float(result.effect.sel({"layer": cell[1], axis: cell[2]}))
    return effects
