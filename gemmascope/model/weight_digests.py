"""Digests of a network's weights by part: each layer, and the embedding with the last norm.

A `digest` is of the numbers. A `mark` is what a run records, to see later whether a part changed: for weights in files it is
the stamp of the files.
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

# Prefix of a mark that holds an older digest, of weights that have looked the same since.
UNVERIFIED = "unsure "

# An embedding of up to this many bytes is digested whenever a run begins.
SMALL = 2**22


class WeightDigests:
    """Digests and marks of a network's weights.

    A tensor can change without torch noticing (through .data, numpy, another process), so digests are always computed anew.
    Only the marks of a new run may reuse an older digest, if gs.load read the weights for this network alone and a sample of
    them is unchanged: then starting a run does not read all weights.
    """

    def __init__(self, network: Gemma2) -> None:
        self._network = network
        self._seen: dict[Part, tuple[object, str]] = {}

    @property
    def parts(self) -> tuple[Part, ...]:
        return (*range(self._network.config.n_layers), None)

    def digest(self, part: Part) -> str:
        """The digest of a part's present numbers."""
        model, layer_source = self._network.model, self._network.layer_source
        if part is not None and layer_source is not None:
            return layer_source.digest(part)
        look = self._look(part)  # first, so that a later look notices a change during the digest
        if part is None:
            digest = join_digests((model.embed_tokens.digest(), tensor_digest(model.norm.weight)))
        else:
            digest = digest_of_layer(model.layers[part])
        self._seen[part] = look, digest
        return digest

    def known(self, part: Part) -> str:
        """The last digest of a part, if the network owns its weights and they look unchanged; else a new one."""
        look, digest = self._seen.get(part, (None, ""))
        if self._network.owned and look is not None and look == self._look(part):
            return digest
        return self.digest(part)

    def mark(self, part: Part) -> str:
        """The mark of a part's present numbers."""
        return self._from_files(part) or self.digest(part)

    def marks(self) -> tuple[str, ...]:
        """The marks of all parts, for a new run."""
        return tuple(self._from_files(part) or self._mark_of_run(part) for part in self.parts)

    def looks(self) -> tuple[object, ...]:
        """Values that change with most changes of the weights, from a sample of them."""
        return tuple(self._from_files(part) or self._look(part) for part in self.parts)

    def _mark_of_run(self, part: Part) -> str:
        """The mark of a part in memory. A layer's may be an older digest, which the run's stored stream can confirm later.

        The sample misses a change of few numbers through .data.
        """
        look, digest = self._seen.get(part, (None, ""))
        if not self._network.owned or look is None or look != self._look(part):
            return self.digest(part)
        if part is None and self._network.model.embed_tokens.weight.nbytes <= SMALL:
            return self.digest(part)
        return UNVERIFIED + digest

    def _from_files(self, part: Part) -> str | None:
        """The mark of a part that stays in files; None for a part in memory."""
        model, layer_source = self._network.model, self._network.layer_source
        if part is not None:
            return None if layer_source is None else layer_source.mark(part)
        stamp = model.embed_tokens.mark()
        return None if stamp is None else join_digests((stamp, tensor_digest(model.norm.weight)))

    def _look(self, part: Part) -> object:
        """Values that change with most changes of a part: addresses and versions of its tensors, a sample of its numbers."""
        model = self._network.model
        tensors = [model.norm.weight, model.embed_tokens.weight] if part is None else list(model.layers[part].parameters())
        about = tuple((id(t), t.data_ptr(), t.dtype, t.shape, 0 if t.is_inference() else t._version) for t in tensors)
        with torch.no_grad():
            sampled = [t.detach().reshape(-1)[:: _step(t)].float() for t in tensors if not t.is_meta]
            return about, torch.cat(sampled).cpu().numpy().tobytes() if sampled else b""


def _step(tensor: Tensor) -> int:
    """The stride of a sample that meets each row and each column of a tensor."""
    if tensor.dim() < 2:
        return 1
    step = max(1, min(tensor.shape[0], tensor.shape[1]))
    while math.gcd(step, tensor.shape[1]) > 1:
        step -= 1
    return step


def digest_of_layer(layer: nn.Module) -> str:
    """The digest of a layer's parameters, names included."""
    # Large tensors first, whose sizes are whole rows of a digest.
    tensors = dict(sorted(layer.named_parameters(), key=lambda item: (-item[1].numel(), item[0])))
    return join_digests((*tensors, tensor_digest(*tensors.values())))
