"""What tells a network's weights from others, part by part: every layer, and what is outside the layers.

`digest` is of the numbers themselves. `mark` is what a run notes and a later look at it compares: where weights stay in
files that are watched, the files' stamps will do.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gemmascope.model.digests import join_digests, tensor_digest

if TYPE_CHECKING:
    from gemmascope.model.gemma2 import Gemma2

# A part of a network: a layer's number, or None for embedding and last norm.
Part = int | None

# What a mark begins with that is of the digest before, of weights that looked as they did.
UNVERIFIED = "unsure "

# Up to so many bytes the embedding is looked at whole whenever a run begins.
SMALL = 2**22


class WeightDigests:
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
        model, layer_source = self._network.model, self._network.layer_source
        if part is not None and layer_source is not None:
            return layer_source.digest(part)
        look = self._look(part)  # before: a change while the digest is taken is then seen by the next look
        if part is None:
            found = join_digests((model.embed_tokens.digest(), tensor_digest(model.norm.weight)))
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
        return tuple(self._from_files(part) or self._mark_of_run(part) for part in self.parts)

    def looks(self) -> tuple[object, ...]:
        """What changes with most changes of the weights, without a look at all of them."""
        return tuple(self._from_files(part) or self._look(part) for part in self.parts)

    def _mark_of_run(self, part: Part) -> str:
        """The mark of a part in memory. A layer's may be that of before: what the run kept tells whether it is right.

        A change of few numbers through .data is not seen by the look at some.
        """
        look, found = self._seen.get(part, (None, ""))
        if not self._network.owned or look is None or look != self._look(part):
            return self.digest(part)
        if part is None and self._network.model.embed_tokens.weight.nbytes <= SMALL:
            return self.digest(part)
        return UNVERIFIED + found

    def _from_files(self, part: Part) -> str | None:
        """The mark of a part that is read from files."""
        model, layer_source = self._network.model, self._network.layer_source
        if part is not None:
            return None if layer_source is None else layer_source.mark(part)
        stamp = model.embed_tokens.mark()
        return None if stamp is None else join_digests((stamp, tensor_digest(model.norm.weight)))

    def _look(self, part: Part) -> object:
        """What changes with most changes of a part: its tensors, their places and versions, some of their numbers."""
        model = self._network.model
        tensors = [model.norm.weight, model.embed_tokens.weight] if part is None else list(model.layers[part].parameters())
        about = tuple((id(t), t.data_ptr(), t.dtype, t.shape, 0 if t.is_inference() else t._version) for t in tensors)
        with torch.no_grad():
            flat = [t.detach().reshape(-1) for t in tensors if not t.is_meta]
            probed = [one[:: _step(t)].float() for one, t in zip(flat, (t for t in tensors if not t.is_meta), strict=True)]
            return about, torch.cat(probed).cpu().numpy().tobytes() if probed else b""


def _step(tensor: Tensor) -> int:
    """Every how many numbers a tensor is looked at, so that each of its rows and each of its columns is."""
    if tensor.dim() < 2:
        return 1
    step = max(1, min(tensor.shape[0], tensor.shape[1]))
    while math.gcd(step, tensor.shape[1]) > 1:
        step -= 1
    return step


def digest_of_layer(layer: nn.Module) -> str:
    """The digest of a layer's parameters, names included."""
    tensors = dict(sorted(layer.named_parameters(), key=lambda item: (-item[1].numel(), item[0])))  # the odd sizes last
    return join_digests((*tensors, tensor_digest(*tensors.values())))
