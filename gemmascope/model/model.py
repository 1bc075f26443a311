"""Model, which gs.load returns and every function takes: a network with its tokenizer and its name."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from copy import deepcopy

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gemmascope.config import GemmaConfig
from gemmascope.errors import DeviceError, PromptError, TapError
from gemmascope.kernels.switch import choose as choose_kernels
from gemmascope.kernels.switch import describe as describe_kernels
from gemmascope.legible import prints_legibly
from gemmascope.model.digests import join_digests
from gemmascope.model.finite import require_sound_weights
from gemmascope.model.gemma2 import Gemma2, Layer
from gemmascope.model.layout import Layout
from gemmascope.model.mixins.lasting_edits import ModelEdits
from gemmascope.model.mixins.named_weights import ModelWeights
from gemmascope.model.modes import computes
from gemmascope.model.prompts import Prompt as Prompt
from gemmascope.model.prompts import as_ids, as_prompts, is_chat, number_errors, warn_of_images
from gemmascope.model.tap import SILENT, Chain, FunctionTap, Tap, TapFn
from gemmascope.model.weight_digests import WeightDigests
from gemmascope.sites import find_layer, layers_text
from gemmascope.tokens.tokenizer import Tokenizer


class Model(ModelWeights, ModelEdits):
    """A Gemma 2 with its tokenizer. Made by gs.load.

    Attributes:
        network: The layers, a torch module.
        name: The model's name.
        source: What gs.load can load it from again; None for a model that was built or given in memory.
        asked: The further arguments that gs.load was called with.
        weights: Digests of the weights, layer by layer.
        edits: The edits that every run has; () unless model.edited made this model.

    Examples:
        >>> model = gs.load()
        >>> model
        Model('nano': 6 layers, d_model 128, 4 heads over 2 kv heads of 32, vocabulary 3623, window 16, context 512; ...)
        >>> model.run("Mary and John").shape
        torch.Size([4, 3623])
    """

    def __init__(
        self,
        network: Gemma2,
        tokenizer: Tokenizer | None,
        name: str,
        asked: Mapping[str, object] | None = None,
        source: str | None = None,
    ) -> None:
        self.network, self._tokenizer, self.name, self.asked = network, tokenizer, name, dict(asked or {})
        self.source = source
        self.weights = WeightDigests(network)
        choose_kernels(self.device)

    def __copy__(self) -> Model:
        """A second model over the same weights."""
        copied = Model(self.network, self._tokenizer, self.name, self.asked, self.source)
        copied.edits = self.edits
        return copied

    def __deepcopy__(self, memo: dict[int, object]) -> Model:
        """A model with its own weights; layers that stream from files are shared, since nobody writes to them."""
        self.network.check()
        network = self.network if self.network.layer_source is not None else self.network.deep_copy(memo)
        copied = Model(network, self._tokenizer, self.name, self.asked, self.source)
        copied.edits = deepcopy(self.edits, memo)
        return copied

    @property
    def config(self) -> GemmaConfig:
        """The configuration: sizes, layer kinds, caps, context."""
        return self.network.config

    @property
    def n_layers(self) -> int:
        """The number of layers."""
        return self.config.n_layers

    @property
    def device(self) -> torch.device:
        """The device that passes run on; of several, the one on which they begin and end, and which holds results."""
        return self.network.device

    @property
    def layer_devices(self) -> tuple[torch.device, ...]:
        """The device of each layer."""
        return tuple(map(self.network.device_of, range(self.n_layers)))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that passes run in."""
        return self.network.model.norm.weight.dtype

    @property
    def has_tokenizer(self) -> bool:
        """Whether the model has a tokenizer; without one, prompts are token ids."""
        return self._tokenizer is not None

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer. PromptError if the model came without one."""
        if self._tokenizer is None:
            raise PromptError(
                f"the model {self.name!r} came without a tokenizer: "
                "give prompts as token ids, or load it with gs.load(..., tokenizer=FOLDER)"
            )
        return self._tokenizer

    @computes
    def layer(self, index: int) -> Layer:
        """One layer, with the weights that a pass computes with: quantised ones dequantised.

        Args:
            index: The layer, counted from the end if negative.

        Returns:
            The layer, a torch module. Its matrices by name, each multiplied by a row from the left: W_Q and W_O
            [head, ...], W_K and W_V [kv_head, ...], W_gate, W_in, W_out; its ov and qk methods give a head's products.

        Raises:
            SiteError: There is no such layer.
        """
        return self.network.layer(find_layer(index, self.n_layers))

    def layers(self, reverse: bool = False) -> Generator[Layer]:
        """The layers in the order of a pass. Each is valid until the next one is requested.

        Args:
            reverse: Start from the last layer. Default False.
        """
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
        """The soft-capped logits of one prompt at every position.

        Args:
            prompt: Text (`<bos>` is put in front), token ids, or chat messages.
            tap: A function fn(site, layer, value) -> value. It sees every site once per layer, in the order and with the
                axes of gs.SITES, and the model continues with what it returns; where it returns None, with the value that
                it was given, which it may have written to. layer is None for embed, final, logits_raw and logits. Scores
                and patterns are built whole, so a long prompt needs the memory for them. Default: none.

        Returns:
            [pos, vocab], float32.

        Raises:
            PromptError: The prompt is empty, too long, or not one.
            TapError: The tap returns something other than such a value, or NaN.
        """
        used = SILENT if tap is None else tap if isinstance(tap, Tap) else FunctionTap(tap, self.device)
        ids = self.ids(prompt)
        layout = Layout.of_lengths([len(ids)], self.device)
        editing, own = self._edit_tap(ids), used
        if editing is not None:
            used = Chain(editing, own)
        with torch.no_grad():
            logits = self.network.unembed(self.network(ids, layout, used), used.at(None, layout))
            if not bool(torch.isfinite(logits.amax(-1)).all()):  # minus infinity may rule a token out
                self._refuse_nan(ids, layout, used if own is SILENT else own)
            return logits

    def _refuse_nan(self, ids: Tensor, layout: Layout, tap: Tap) -> None:
        """TapError if a tap caused the NaN, CheckpointError if the weights do."""
        if tap is not SILENT:
            require_sound_weights(self.network, self.name, ids)
            first = tap.first_nan() if isinstance(tap, FunctionTap) else None
            raise TapError(f"the run holds NaN, which it does not without the tap: {first or 'what it returns'} began it")
        require_sound_weights(self.network, self.name, ids)

    @computes
    def ids(self, prompt: Prompt) -> Int[Tensor, " pos"]:
        """The token ids of a prompt.

        Args:
            prompt: Text (`<bos>` is put in front unless the text has it), chat messages, or token ids, taken as they are.

        Returns:
            [pos], int64, on the model's device. A copy.

        Raises:
            PromptError: The prompt is empty, has ids outside the vocabulary, or exceeds the context.
        """
        ids = self.ids_of_any_length(prompt)
        context = self.config.context
        if (excess := len(ids) - context) > 0:
            raise PromptError(
                f"the prompt has {len(ids)} tokens and {self.name!r} a context of {context}: shorten it by {excess}"
            )
        self.network.check()
        return ids.to(self.device, copy=True)  # should the user write to the given tensor

    def ids_of_any_length(self, prompt: Prompt) -> Int[Tensor, " pos"]:
        """As ids, on the CPU, of a prompt that may exceed the context. It may be the given tensor itself.

        Args:
            prompt: As in ids.
        """
        self.require_values()
        prompt = as_prompts(prompt)
        is_text = isinstance(prompt, str) or is_chat(prompt)
        ids = torch.tensor(self.tokenizer.ids(prompt)) if is_text else as_ids(prompt)  # type: ignore[arg-type]
        warn_of_images(prompt, ids, self._tokenizer)
        wrong = ids[(ids < 0) | (ids >= self.config.vocab_size)]
        if len(wrong):
            last = self.config.vocab_size - 1
            raise PromptError(f"token id {int(wrong[0])} is outside {self.name!r}'s vocabulary: ids go from 0 to {last}")
        return ids

    def each_ids(self, prompts: Sequence[Prompt], what: str = "prompt") -> list[Tensor]:
        """The token ids of several prompts.

        Args:
            prompts: As in ids.
            what: What a prompt is called in an error. Default "prompt".

        Raises:
            PromptError: As in ids, with the number of the prompt.
        """
        each = []
        for number, prompt in enumerate(prompts):
            with number_errors(what, number, len(prompts)):
                each.append(self.ids(prompt))
        return each

    def texts(self, ids: Tensor) -> list[str]:
        """Each token as text; without a tokenizer, its id.

        Args:
            ids: Token ids, [pos].
        """
        numbers = ids.tolist()
        return [str(i) for i in numbers] if self._tokenizer is None else self._tokenizer.texts(numbers)

    @property
    def fingerprint(self) -> str:
        """A digest of the present weights, the configuration, the dtype, the tokenizer and the model's edits."""
        return self.fingerprints()[0]

    def fingerprints(self) -> tuple[str, str]:
        """Both fingerprint and network_fingerprint, from reading the weights once."""
        self.require_values()
        self.network.check()
        tokenizer = "none" if self._tokenizer is None else self._tokenizer.digest
        network = (*self._about(), *map(self.weights.digest, self.weights.parts))
        return self._with_edits(join_digests((*network, tokenizer)))[:16], join_digests(network)[:16]

    @property
    def network_fingerprint(self) -> str:
        """A digest of the weights, the configuration and the dtype, without the tokenizer and the model's edits."""
        self.require_values()
        return join_digests((*self._about(), *map(self.weights.known, self.weights.parts)))[:16]

    def _about(self) -> tuple[str, str]:
        return repr(self.config), str(self.dtype)

    def _places(self) -> str:
        """The device, or each of several with its layers, or the processes that share the layers."""
        if self.network.n_processes > 1:
            return f"{self.device} in one of {self.network.n_processes} processes"
        if not self.network.layer_devices:
            return str(self.device)
        numbers: dict[torch.device, list[int]] = {}
        for layer, device in enumerate(self.layer_devices):
            numbers.setdefault(device, []).append(layer)
        return ", ".join(f"{device} {layers_text(layers)}" for device, layers in numbers.items())

    @prints_legibly
    def __repr__(self) -> str:
        c = self.config
        return (
            f"Model({self.name!r}: {c.n_layers} layers, d_model {c.d_model}, "
            f"{c.n_heads} heads over {c.n_kv_heads} kv heads of {c.d_head}, "
            f"vocabulary {c.vocab_size}, window {c.window}, context {c.context}; "
            f"{self.n_params:,} parameters, {str(self.dtype)[6:]}, {self._places()}{describe_kernels(self.device)}"
            f"{''.join(f', {name}={value!r}' for name, value in self.asked.items())}{self._edits_text()})"
        )
