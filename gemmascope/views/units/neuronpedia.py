"""TopExamples as Neuronpedia's feature JSON, which its viewer of attribution graphs reads."""

from __future__ import annotations

import json
import os
from typing import Any

from gemmascope.errors import ExamplesError, FileError
from gemmascope.examples.result import TopExamples
from gemmascope.files.paths import user_path
from gemmascope.files.writing import write_file
from gemmascope.model.model import Model
from gemmascope.model.modes import computes
from gemmascope.sae.feature_logits import written_to_stream
from gemmascope.sae.weights import DictionaryWeights
from gemmascope.views.units.page import own_model, require_examples
from gemmascope.views.units.rows import histogram_of, sections
from gemmascope.views.units.weights import raised_by

# A JSON object.
Json = dict[str, Any]


@computes
def feature_json(
    sae: DictionaryWeights,
    feature: int,
    examples: TopExamples,
    *,
    model: Model | None = None,
    out: str | os.PathLike[str] | None = None,
) -> Json:
    """A feature in the JSON of Neuronpedia's feature details, which graph viewers read.

    Args:
        sae: The dictionary, as it was given to gs.top_examples.
        feature: The feature's number.
        examples: What gs.top_examples or gs.open_examples returned.
        model: The model that they are of; None: nano where they are nano's, else none, and no logits.
        out: A file to write it to; None: none.

    Returns:
        Its fields: transcoder_id, index, examples_quantiles, top_logits and bottom_logits (tokens), act_min and act_max,
        histogram (counts) and activation_frequency. Numbers have four digits; an example's token without a row, such as
        `<bos>`, has activation 0.

    Raises:
        ExamplesError: The feature is not among the examples, or they are of another model.
        DictionaryError: The dictionary is of another model.
        FileError: The file cannot be written.

    Examples:
        >>> sae = gs.load_sae()
        >>> examples = gs.top_examples([pair.clean for pair in gs.prompts.ioi(8)], (sae, [987]), k=3)
        >>> details = gs.feature_json(sae, 987, examples)
        >>> details["index"], details["examples_quantiles"][0]["quantile_name"]
        (987, 'Strongest')
    """
    require_examples(examples)
    if not isinstance(sae, DictionaryWeights):
        raise ExamplesError(f"sae is what gs.load_sae returns; given {type(sae).__name__}")
    group = examples.find(sae)
    group.index(feature)
    model = own_model(examples, model)
    raised: list[str] = []
    lowered: list[str] = []
    if model is not None:
        sae.require_fit(model)
        if (written := written_to_stream(sae, model, int(feature))) is not None:
            raised, lowered = ([one.name for one in found] for found in raised_by(model, written))
    one = group.data.sel(unit=int(feature))
    data: dict[str, Any] = {
        "transcoder_id": sae.call,
        "index": int(feature),
        "examples_quantiles": [_quantile(part) for part in sections(examples, group, int(feature), None)],
        "top_logits": raised,
        "bottom_logits": lowered,
        "act_min": float(one["low"]),
        "act_max": float(one["high"]),
        "histogram": histogram_of(group, int(feature))["counts"],
        "activation_frequency": float(one["density"]),
    }
    if out is not None:
        write_file(user_path(out, error=FileError, what="a feature's JSON"), json.dumps(data, allow_nan=False))
    return data


def _quantile(part: Json) -> Json:
    """The examples of one part of the range."""
    return {
        "quantile_name": part["name"],
        "examples": [
            {
                "tokens": row["tokens"],
                "tokens_acts_list": [value or 0.0 for value in row["values"]],
                "train_token_ind": row["at"],
                "is_repeated_datapoint": False,
            }
            for row in part["rows"]
        ],
    }
