"""All edits of a run: those that its model keeps, and those that a call names."""

from __future__ import annotations

from gemmascope.edits.edit import Edit, listed_edits
from gemmascope.model.model import Model


def all_edits(model: Model, edits: object = ()) -> tuple[Edit, ...]:
    """All edits of a run: those that the model keeps (Model.edited), and the user's. EditError as in listed_edits."""
    kept = tuple(edit for edit in model.edits if isinstance(edit, Edit))
    return (*kept, *listed_edits(edits))
