"""Model: a network with its tokenizer and its name. What `gs.load` returns and every function takes."""

from __future__ import annotations

import operator
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gemmascope.arguments import shown
from gemmascope.config import GemmaConfig
from gemmascope.errors import DeviceError, PromptError, TapError
from gemmascope.legible import legibly
from gemmascope.model.digests import join_digests
from gemmascope.model.finite import require_sound_weights
from gemmascope.model.gemma2 import Gemma2, Layer
from gemmascope.model.layout import Layout
from gemmascope.model.modes import computes
from gemmascope.model.prompts import as_prompts, numbered
from gemmascope.model.tap import SILENT, FunctionTap, Tap, TapFn
from gemmascope.model.weight_digests import WeightDigests
from gemmascope.sites import find_layer
from gemmascope.tokens.tokenizer import Message, Tokenizer
from gemmascope.values import real_tensor

Prompt = str | Sequence[int] | Tensor | Sequence[Message]


class Model:
    """A Gemma 2 that can be looked into.

    name: what it is called. source: what gs.load loads it from again; None for one that was made or given in memory.
    asked: what gs.load was asked for besides, as its arguments. network: the layers.
    tokenizer: None for a model that came without one, whose prompts are token ids.
    """

    def __init__(
        self,
        network: Gemma2,
        tokenizer: Tokenizer | None,
        name: str,
        asked: Mapping[str, Any] | None = None,
        source: str | None = None,
    ) -> None:
        self.network, self._tokenizer, self.name, self.asked = network, tokenizer, name, dict(asked or {})
        self.source = source
        self.weights = WeightDigests(network)

    def __copy__(self) -> Model:
        """A second model over the same weights."""
        return Model(self.network, self._tokenizer, self.name, self.asked, self.source)

    def __deepcopy__(self, memo: dict[int, Any]) -> Model:
        """A model with weights of its own; layers that are brought from files are shared, since nobody writes to them."""
        self.network.check()
        network = self.network if self.network.layer_source is not None else self.network.copied(memo)
        return Model(network, self._tokenizer, self.name, self.asked, self.source)

    @property
    def config(self) -> GemmaConfig:
        return self.network.config

    @property
    def n_layers(self) -> int:
        return self.config.n_layers

    @property
    def device(self) -> torch.device:
        return self.network.model.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.network.model.norm.weight.dtype

    @property
    def has_tokenizer(self) -> bool:
        return self._tokenizer is not None

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises PromptError for a model that came without one."""
        if self._tokenizer is None:
            raise PromptError(
                f"the model {self.name!r} came without a tokenizer: "
                "give prompts as token ids, or load it with gs.load(..., tokenizer=FOLDER)"
            )
        return self._tokenizer

    @computes
    def layer(self, index: int) -> Layer:
        """One layer; a negative index counts from the end. SiteError if there is none.

        Its weights are those that a pass computes with, quantised ones as the numbers they stand for.
        """
        return self.network.layer(find_layer(index, self.n_layers))

    def layers(self, reverse: bool = False) -> Generator[Layer]:
        """The layers in the order of a pass, or in reverse; each is good until the next is asked for."""
        self.network.check()
        return self.network.layers(reverse)

    def require_values(self) -> None:
        """DeviceError for a model on the meta device, which has shapes and no numbers."""
        if self.device.type == "meta":
            raise DeviceError(
                f'{self.name!r} was loaded on "meta", which has shapes and no values: load it on "cpu" or another device'
            )

    @property
    def n_params(self) -> int:
        """Number of parameters, the tied embedding counted once."""
        return sum(p.numel() for p in self.network.parameters())

    @computes
    def run(self, prompt: Prompt, tap: TapFn | Tap | None = None) -> Float[Tensor, "pos vocab"]:
        """The soft-capped logits of one prompt at every position, in float32.

        tap: a function fn(site, layer, value) -> value that sees every site exactly once per layer, in the order of the
        table of sites, with its axes; what it returns is what the model goes on with. layer is None for embed, final,
        logits_raw and logits. Edge sites come whole, so a long prompt needs the room for its scores.
        Raises PromptError for a bad prompt, TapError for a tap that returns something else than such a value.
        """
        used = SILENT if tap is None else tap if isinstance(tap, Tap) else FunctionTap(tap)
        ids = self.ids(prompt)
        layout = Layout.of_lengths([len(ids)], self.device)
        with torch.no_grad():
            logits = self.network.unembed(self.network(ids, layout, used), used.at(None, layout))
            if not bool(torch.isfinite(logits.amax(-1)).all()):  # minus infinity may rule a token out
                self._refuse_nan(ids, layout, used)
            return logits

    def _refuse_nan(self, ids: Tensor, layout: Layout, tap: Tap) -> None:
        """TapError for logits of NaN that a tap made, CheckpointError for those of the weights."""
        if tap is not SILENT:
            require_sound_weights(self.network, self.name, ids)
            first = tap.first_nan() if isinstance(tap, FunctionTap) else None
            raise TapError(f"the run holds NaN, which it does not without the tap: {first or 'what it returns'} began it")
        require_sound_weights(self.network, self.name, ids)

    @computes
    def ids(self, prompt: Prompt) -> Int[Tensor, " pos"]:
        """The token ids of a prompt, on the model's device.

        prompt: text (<bos> is put in front unless it is there), chat messages, or token ids, which are taken as they are.
        Raises PromptError for an empty prompt, ids that are no token of the model, or more of them than its context.
        """
        self.require_values()
        prompt = as_prompts(prompt)
        if isinstance(prompt, str) or (_is_list(prompt) and len(prompt) > 0 and isinstance(prompt[0], Mapping)):
            ids = torch.tensor(self.tokenizer.ids(prompt))  # type: ignore[arg-type]
        else:
            ids = _as_ids(prompt)
        wrong = ids[(ids < 0) | (ids >= self.config.vocab_size)]
        last, context = self.config.vocab_size - 1, self.config.context
        if len(wrong):
            raise PromptError(f"token id {int(wrong[0])} is outside {self.name!r}'s vocabulary: ids go from 0 to {last}")
        if (excess := len(ids) - context) > 0:
            raise PromptError(
                f"the prompt has {len(ids)} tokens and {self.name!r} a context of {context}: shorten it by {excess}"
            )
        self.network.check()
        return ids.to(self.device, copy=True)  # a run is of these ids, whatever is written to the tensor given

    def each_ids(self, prompts: Sequence[Any], what: str = "prompt") -> list[Tensor]:
        """The token ids of several prompts. PromptError as in ids, with the number of the prompt that it is about."""
        found = []
        for number, prompt in enumerate(prompts):
            with numbered(what, number, len(prompts)):
                found.append(self.ids(prompt))
        return found

    def texts(self, ids: Tensor) -> list[str]:
        """Each token as text; without a tokenizer, its number."""
        numbers = ids.tolist()
        return [str(i) for i in numbers] if self._tokenizer is None else self._tokenizer.texts(numbers)

    @property
    def fingerprint(self) -> str:
        """A digest of all the weights, the configuration, the dtype and the tokenizer, as they are now."""
        return self.fingerprints()[0]

    def fingerprints(self) -> tuple[str, str]:
        """fingerprint and network_fingerprint, from one look at the weights."""
        self.require_values()
        self.network.check()
        words = "none" if self._tokenizer is None else self._tokenizer.digest
        network = (*self._about(), *map(self.weights.digest, self.weights.parts))
        return join_digests((*network, words))[:16], join_digests(network)[:16]

    @property
    def network_fingerprint(self) -> str:
        """A digest of all the weights, the configuration and the dtype: the same with any tokenizer."""
        self.require_values()
        return join_digests((*self._about(), *map(self.weights.known, self.weights.parts)))[:16]

    def _about(self) -> tuple[str, str]:
        return repr(self.config), str(self.dtype)

    @legibly
    def __repr__(self) -> str:
        c = self.config
        return (
            f"Model({self.name!r}: {c.n_layers} layers, d_model {c.d_model}, "
            f"{c.n_heads} heads over {c.n_kv_heads} kv heads of {c.d_head}, "
            f"vocabulary {c.vocab_size}, window {c.window}, context {c.context}; "
            f"{self.n_params:,} parameters, {str(self.dtype)[6:]}, {self.device}"
            f"{''.join(f', {name}={value!r}' for name, value in self.asked.items())})"
        )


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _as_ids(prompt: Any) -> Tensor:
    if isinstance(prompt, Tensor) and not prompt.is_complex() and not prompt.is_floating_point():
        prompt = real_tensor(prompt, "a prompt of token ids", PromptError)
    ids = prompt if isinstance(prompt, Tensor) else _tensor_of(prompt)
    if ids.is_nested:
        raise PromptError("the token ids of one prompt have one axis, [pos]; given a nested tensor")
    if ids.dim() == 2 and len(ids) == 1:  # the batch axis that transformers' tokenizers put in front
        ids = ids[0]
    if ids.dim() != 1:
        raise PromptError(f"the token ids of one prompt have one axis, [pos]; given shape {tuple(ids.shape)}")
    if len(ids) == 0:
        raise PromptError("the prompt is empty: give at least one token id")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise PromptError(f"token ids are whole numbers; given a tensor of {ids.dtype}")
    return ids.long()


def _tensor_of(prompt: Any) -> Tensor:
    if hasattr(prompt, "__array__"):  # numpy's arrays, and those of whoever speaks their protocol
        array = np.asarray(prompt)
        if array.dtype.kind not in "iu":
            raise PromptError(f"token ids are whole numbers; given an array of {array.dtype}")
        return torch.from_numpy(array.astype(np.int64))
    if not _is_list(prompt):
        raise PromptError(f"a prompt is text, token ids or chat messages; given {type(prompt).__name__}")
    return torch.tensor([_whole(i) for i in prompt], dtype=torch.long)


def _whole(value: Any) -> int:
    try:
        number = operator.index(value)
    except TypeError as error:
        raise PromptError(f"token ids are whole numbers; given {shown(value)}") from error
    if isinstance(value, bool):  # Python counts with it, but nobody means a token by True
        raise PromptError(f"token ids are whole numbers; given {shown(value)}")
    if abs(number) >= 2**63:  # more than a tensor of them can hold
        raise PromptError(f"token id {shown(number)} is outside any vocabulary")
    return number
