"""gs.open_examples reads top examples that TopExamples.save wrote."""

from __future__ import annotations

import os

from gemmascope.errors import ExamplesError
from gemmascope.examples.files import read_examples
from gemmascope.examples.result import TopExamples
from gemmascope.loading.default import model_or_nano
from gemmascope.model.model import Model


def open_examples(path: str | os.PathLike[str], *, model: Model | None = None) -> TopExamples:
    """Open top examples that TopExamples.save wrote.

    Args:
        path: The file, "~" being the home folder.
        model: A model that they must be of; None: any. They are read without their model.

    Returns:
        The TopExamples.

    Raises:
        ExamplesError: The file holds none, is damaged, or they are of another model.

    Examples:
        >>> examples = gs.top_examples(["The cat sat on the mat"], ("neuron", 3, 7), progress=False)
        >>> examples.save("examples.safetensors")
        >>> gs.open_examples("examples.safetensors").n_rows
        8
    """
    metadata, groups, settings = read_examples(path)
    name, fingerprint = str(metadata["model"]), str(metadata["fingerprint"])
    if model is not None and (given := model_or_nano(model)).fingerprint != fingerprint:
        raise ExamplesError(f"{path} holds examples of {name!r} ({fingerprint}); given {given.name!r} ({given.fingerprint})")
    return TopExamples(groups, metadata["vocab"], name, fingerprint, int(metadata["n_rows"]), settings)
