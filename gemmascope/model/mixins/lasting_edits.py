"""Edits that a model keeps: Model.edited gives another model over the same weights, with edits in every run.

This room imports nothing of the edits' room, so it says in protocols what it needs of an edit; Edit and BoundEdit in
edits/edit.py have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

from torch import Tensor

from gemmascope.arguments import as_list, is_list, short_repr
from gemmascope.errors import EditError
from gemmascope.legible import legible
from gemmascope.model.digests import join_digests
from gemmascope.model.layout import Block, Layout
from gemmascope.model.tap import Tap
from gemmascope.sites import Address
from gemmascope.values import is_array


@runtime_checkable
class LastingEdit(Protocol):
    """An edit that gs.patch, gs.ablate, gs.add and the like make."""

    def bind(self, model: Any, ids: Tensor) -> Any:
        """The edit on one run."""

    def snapshot(self) -> LastingEdit:
        """The edit with copies of its tensors and lists, which the user may change later."""

    def require_places(self, model: Any) -> None:
        """SiteError for a site, layer or head that the model lacks."""

    def digest(self) -> str:
        """A digest of the edit and of the numbers that it writes."""


class BoundToRun(Protocol):
    """An edit on one run."""

    @property
    def address(self) -> Address: ...
    @property
    def edit(self) -> Any: ...
    def write_to(self, value: Tensor, first: int = 0, read: Tensor | None = None) -> None: ...


M = TypeVar("M", bound="ModelEdits")


class ModelEdits:
    """The edits that a model keeps. edits: () for a model as it was loaded."""

    edits: tuple[LastingEdit, ...] = ()

    def edited(self: M, edits: Sequence[LastingEdit]) -> M:
        """Another model over the same weights that has these edits in every run; this one stays as it is.

        Every function that runs a prompt makes them, before edits of its own: gs.trace, gs.sweep and gs.path_sweep (in
        both runs of a pair), gs.attribute, gs.generate, gs.head_scores, model.run and the others.
        Positions are looked up in each prompt anew. The weights, and what is read from them alone (layer.ov,
        gs.composition), are those of this model. Edits of an edited model come after those that it has.

        Args:
            edits: As in gs.trace. What their tensors and lists hold now is what is written.

        Returns:
            The edited model. Its repr shows the edits, and its fingerprint counts them.

        Raises:
            EditError: For what is no list of edits.
            SiteError: For a site, layer or head that does not exist. A position that a prompt lacks is an error of that run.

        Examples:
            >>> model = gs.load()
            >>> cut = model.edited([gs.ablate("z", layer=3, head=0)])
            >>> prompt = "When Mary and John went to the store, John gave a drink to"
            >>> by_model = gs.trace(prompt, model=cut)
            >>> by_model.edits
            (gs.ablate('z', layer=3, head=0),)
            >>> bool((by_model.logits == gs.trace(prompt, edits=by_model.edits).logits).all())
            True
        """
        edited = copy(self)
        edited.edits = (*self.edits, *(edit.snapshot() for edit in _listed(edits)))
        for edit in edited.edits[len(self.edits) :]:
            edit.require_places(self)
        return edited

    def unedited(self: M) -> M:
        """The model without the edits that it keeps; itself if there are none."""
        if not self.edits:
            return self
        plain = copy(self)
        plain.edits = ()
        return plain

    def _edit_tap(self, ids: Tensor) -> Tap | None:
        """The tap that makes the model's edits in one run of these ids; None for a model without."""
        return _RunEdits([edit.bind(self, ids) for edit in self.edits]) if self.edits else None

    def _with_edits(self, digest: str) -> str:
        """A digest of this model without its edits, joined with theirs."""
        return join_digests((digest, *(edit.digest() for edit in self.edits))) if self.edits else digest

    def _edits_text(self) -> str:
        return f", edits={list(self.edits)!r}" if self.edits else ""


class _RunEdits(Tap):
    """Applies the edits of one run, in their order."""

    def __init__(self, edits: Sequence[BoundToRun]) -> None:
        self.edits = edits
        self.values_read: dict[tuple[str, int | None], Tensor] = {}

    def wants(self, site: str, layer: int | None) -> bool:
        return any(edit.address.key == (site, layer) for edit in self.edits)

    def rows(self, site: str, layer: int | None, value: Tensor, layout: Layout) -> Tensor:
        if self.wants(site, layer):
            value = value.clone()
        for edit in self.edits:
            if edit.address.key == (site, layer):
                reads = edit.edit.reads
                edit.write_to(value, 0, None if reads is None else self.values_read[reads, layer])
        if any((edit.edit.reads, edit.address.layer) == (site, layer) for edit in self.edits):
            self.values_read[site, layer] = value
        return value

    def edges(self, site: str, layer: int, value: Tensor, block: Block) -> Tensor:
        value = value.clone()
        for edit in self.edits:
            if edit.address.key == (site, layer):
                edit.write_to(value[0])
        return value


def _listed(edits: object) -> list[LastingEdit]:
    if isinstance(edits, LastingEdit):
        raise EditError(f"edits is a list of edits; given one: write model.edited([{edits!r}])")
    if is_array(edits) or not is_list(edits):
        raise EditError(f"edits is a list of edits; given {short_repr(edits)}")
    listed = as_list(edits, "edits", error=EditError)
    if wrong := [edit for edit in listed if not isinstance(edit, LastingEdit)]:
        made = "made by gs.patch, gs.ablate, gs.add, ..."
        raise EditError(legible(f"edits is a list of edits, {made}; it holds {short_repr(wrong[0])}"))
    if not listed:
        raise EditError("edits is an empty list: the model would be this one. Give one edit at least")
    return cast(list[LastingEdit], listed)
