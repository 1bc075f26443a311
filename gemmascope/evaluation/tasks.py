"""Families of prompts as tasks of lm-evaluation-harness: which of two answers a model finds likelier."""

from __future__ import annotations

import json
from pathlib import Path

from gemmascope.files.writing import write_file
from gemmascope.prompts.pairs import Pairs


def family_task(pairs: Pairs, folder: Path) -> dict[str, object]:
    """The configuration of a task of multiple choice for a family, whose questions are written to a folder as JSON lines."""
    path = folder / f"{pairs.family}.jsonl"
    lines = [json.dumps({"text": pair.clean, "choices": [pair.answer, pair.against], "target": 0}) for pair in pairs]
    write_file(path, "\n".join(lines) + "\n")
    return {
        "task": pairs.family,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "text",
        "doc_to_choice": "choices",
        "doc_to_target": "target",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1},
    }
