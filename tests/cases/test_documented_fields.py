"""Every field that the docstring of a result names exists."""

from __future__ import annotations

import dataclasses
import re
from importlib import import_module

import pytest

RESULTS = {
    "Lens": "analysis.lens", "DirectLogits": "analysis.direct_logits", "HeadScores": "analysis.heads",
    "SweepResult": "sweeps.result", "Comparison": "analysis.comparison", "Features": "sae.features",
    "FeatureSweep": "sae.feature_sweep", "Direction": "steering.direction", "StrengthSweep": "steering.strength_result",
    "Composition": "analysis.composition", "AttentionSummary": "analysis.attention_summary", "Plan": "memory.plan",
    "Generation": "generation.result",
}  # fmt: skip


@pytest.mark.parametrize("name", RESULTS)
def test_every_name_in_the_docstring_of_a_result_is_a_field(name: str) -> None:
    cls = getattr(import_module(f"gemmascope.{RESULTS[name]}"), name)
    text = " ".join((cls.__doc__ or "").split())
    named = {one for names in re.findall(r"(?:^|[.;:] )((?:[a-z_]+, )*[a-z_]+): ", text) for one in names.split(", ")}
    fields = set(dir(cls)) | {field.name for field in dataclasses.fields(cls)}
    assert named
    assert not named - fields


def test_every_field_of_a_lens_is_documented() -> None:
    from gemmascope.analysis.lens import Lens

    text = Lens.__doc__ or ""
    assert not [field.name for field in dataclasses.fields(Lens) if not re.search(rf"\b{field.name}\b", text)]
