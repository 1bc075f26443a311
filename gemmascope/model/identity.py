"""What tells a network's weights from others, part by part: every layer, and what is outside the layers.

`digest` is of the numbers themselves. `mark` is what a run notes and a later look at it compares: where weights stay in
files that are watched, the files' stamps will do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from gemmascope.model.bits import bits_of, joined

if TYPE_CHECKING:
    from gemmascope.model.gemma2 import Gemma2

# A part of a network: a layer's number, or None for embedding and last norm.
Part = int | None

# How many numbers of a tensor are looked at to see whether all should be.
PROBED = 64


class Identity:
    """Digests of a network's weights.

    A tensor can be written to without a trace that torch keeps (through .data, numpy, another process), so every digest is
    of what is there now. Only the marks of a run that begins may be those of before, of weights that gs.load has read for
    this network alone and that look as they did: then a run costs no look at all of them.
    """

    def __init__(self, network: Gemma2) -> None:
        self._network = network
        self._seen: dict[Part, tuple[object, str]] = {}

    @property
    def parts(self) -> tuple[Part, ...]:
        return (*range(self._network.config.n_layers), None)

    def digest(self, part: Part) -> str:
        """The digest of a part's numbers, as they are now."""
        model, supply = self._network.model, self._network.supply
        if part is not None and supply is not None:
            return supply.digest(part)
        look = self._look(part)  # before: a change while the digest is taken is then seen by the next look
        if part is None:
            found = joined((model.embed_tokens.digest(), bits_of(model.norm.weight)))
        else:
            found = digest_of_layer(model.layers[part])
        self._seen[part] = look, found
        return found

    def known(self, part: Part) -> str:
        """The digest of a part as it was last taken, if nobody else holds the weights and they look as they did."""
        look, found = self._seen.get(part, (None, ""))
        if self._network.owned and look is not None and look == self._look(part):
            return found
        return self.digest(part)

    def mark(self, part: Part) -> str:
        """What a run notes of a part, as it is now."""
        return self._from_files(part) or self.digest(part)

    def marks(self) -> tuple[str, ...]:
        """The marks of all parts, for a run that begins."""
        return tuple(self._from_files(part) or self.known(part) for part in self.parts)

    def _from_files(self, part: Part) -> str | None:
        """The mark of a part that is read from files."""
        model, supply = self._network.model, self._network.supply
        if part is not None:
            return None if supply is None else supply.mark(part)
        stamp = model.embed_tokens.mark()
        return None if stamp is None else joined((stamp, bits_of(model.norm.weight)))

    def _look(self, part: Part) -> object:
        """What changes with most changes of a part: its tensors, their places and versions, some of their numbers."""
        model = self._network.model
        tensors = [model.norm.weight, model.embed_tokens.weight] if part is None else list(model.layers[part].parameters())
        about = tuple((id(t), t.data_ptr(), t.dtype, t.shape, 0 if t.is_inference() else t._version) for t in tensors)
        with torch.no_grad():
            flat = [t.detach().reshape(-1) for t in tensors if not t.is_meta]
            probed = [one[:: max(1, len(one) // PROBED)].float() for one in flat]
            return about, torch.cat(probed).cpu().numpy().tobytes() if probed else b""


def digest_of_layer(layer: nn.Module) -> str:
    """The digest of a layer's parameters, names included."""
    tensors = dict(sorted(layer.named_parameters(), key=lambda item: (-item[1].numel(), item[0])))  # the odd sizes last
    return joined((*tensors, bits_of(*tensors.values())))
