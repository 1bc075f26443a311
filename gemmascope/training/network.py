"""The weights of a dictionary in training, and its loss.

Weights apply to scaled rows. pre = relu(x @ W_enc + b_enc); an architecture keeps some of it, which W_dec reads. The rows of
W_dec have length 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from gemmascope.training.activation import batch_cut, jump_relu, step, top_k
from gemmascope.training.recipe import BATCH_TOP_K, JUMP_RELU, TOP_K, Recipe

# At first so many times as many features are active, and fewer die.
WIDE = 4.0
# How much of the threshold of BatchTopK is that of the steps before.
MEMORY = 0.99
# The first threshold of a JumpReLU whose penalty has a fixed coefficient, as in arXiv 2408.05147.
FIRST_THRESHOLD = 0.001
# Encoders that begin as examples are so long, so that few features are active at first.
FIRST_LENGTH = 0.2


def first_weights(recipe: Recipe, x: Tensor, target: Tensor) -> dict[str, Tensor]:
    """The weights before the first step, from the recipe's seed.

    An autoencoder begins with random directions, which encoder and decoder share; a transcoder with examples: what was read
    at a row, and what was written there.

    Args:
        recipe: What is asked.
        x: Scaled rows of the input, [row, d_in].
        target: The same rows of the output, [row, d_out].
    """
    rng = torch.Generator().manual_seed(recipe.seed)
    n, d_out = recipe.features, target.shape[1]
    W_dec = normalize(torch.randn(n, d_out, generator=rng), dim=1).to(x.device)
    if recipe.is_transcoder:
        at = torch.randint(len(x), (n,), generator=rng).to(x.device)
        W_enc = FIRST_LENGTH * normalize(x[at], dim=1).T
        W_dec = normalize(target[at] + 1e-6 * W_dec, dim=1)
    else:
        W_enc = W_dec.T
    weights = {"W_enc": W_enc.contiguous(), "b_enc": x.new_zeros(n), "W_dec": W_dec.clone(), "b_dec": x.new_zeros(d_out)}
    if recipe.skip:
        weights["W_skip"] = x.new_zeros(x.shape[1], d_out)
    if recipe.architecture == JUMP_RELU:
        cut = x.new_tensor(FIRST_THRESHOLD)
        if recipe.l0 is not None:
            cut = batch_cut((x[: recipe.batch_size] @ weights["W_enc"]).relu(), min(n, WIDE * recipe.l0))
        weights["log_threshold"] = cut.log().expand(n).clone()
    return weights


@dataclass
class Step:
    """What a step found: loss with its gradients, and what the history keeps of it."""

    loss: Tensor
    error: float
    l0: float


class Network:
    """A dictionary in training.

    Attributes:
        weights: By name, on scaled rows.
        threshold: The running mean of BatchTopK's cut.
        asleep: For how many rows each feature was not active.
    """

    def __init__(self, recipe: Recipe, weights: dict[str, Tensor]) -> None:
        self.recipe = recipe
        self.weights = {name: weight.detach().clone().requires_grad_() for name, weight in weights.items()}
        self.threshold = weights["b_enc"].new_zeros(())
        self.asleep = torch.zeros_like(weights["b_enc"])

    def pre(self, x: Float[Tensor, "row d_in"]) -> Float[Tensor, "row feature"]:
        return (x @ self.weights["W_enc"] + self.weights["b_enc"]).relu()

    def decode(self, acts: Float[Tensor, "row feature"], x: Float[Tensor, "row d_in"]) -> Float[Tensor, "row d_out"]:
        written: Tensor = acts @ self.weights["W_dec"] + self.weights["b_dec"]
        return written + x @ self.weights["W_skip"] if self.recipe.skip else written

    def loss(self, x: Float[Tensor, "row d_in"], target: Float[Tensor, "row d_out"], number: int) -> Step:
        """The loss of a batch: the squared error, what makes the features few, and what revives dead ones.

        number: of the step, from 0.
        """
        pre = self.pre(x)
        acts, penalty = self._sparse(pre, number)
        residual = target - self.decode(acts, x)
        error = residual.square().sum(1).mean()
        with torch.no_grad():
            active = acts > 0
            self.asleep = torch.where(active.any(0), 0.0, self.asleep + len(x))
            l0 = active.sum(1, dtype=torch.float32).mean()
        return Step(error + penalty + self._revived(pre, residual.detach()), error.item(), l0.item())

    def _sparse(self, pre: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """The activations, and the penalty."""
        recipe, none = self.recipe, pre.new_zeros(())
        settled = min(1.0, number / max(1.0, recipe.settle * recipe.steps))
        if recipe.architecture == JUMP_RELU:
            threshold = self.weights["log_threshold"].exp()
            n_active = step(pre, threshold, recipe.bandwidth).sum(1).mean()
            if recipe.l0 is None:
                assert recipe.sparsity is not None
                penalty = settled * recipe.sparsity * n_active
            else:
                wanted = min(recipe.l0 * (1 + (WIDE - 1) * (1 - settled)), recipe.features)
                penalty = (n_active / wanted - 1).square()
            return jump_relu(pre, threshold, recipe.bandwidth), penalty
        if recipe.l0 is None:
            assert recipe.sparsity is not None
            return pre, settled * recipe.sparsity * pre.sum(1).mean()
        k = min(recipe.l0 * (1 + (WIDE - 1) * (1 - settled)), recipe.features)
        if recipe.architecture == TOP_K:
            return top_k(pre, int(k)), none
        cut = batch_cut(pre, k)
        memory = MEMORY if number else 0.0
        self.threshold = memory * self.threshold + (1 - memory) * cut
        return pre * (pre >= cut), none

    def _revived(self, pre: Tensor, residual: Tensor) -> Tensor:
        """The weighted error of the strongest dead features on what the others leave, as a share of it.

        As in arXiv 2406.04093, for all architectures.
        """
        recipe = self.recipe
        dead = (self.asleep > recipe.dead_after).nonzero()[:, 0]
        if not len(dead) or not recipe.revive:
            return pre.new_zeros(())
        acts = top_k(pre[:, dead], min(len(dead), max(1, residual.shape[1] // 2)))
        left = (residual - acts @ self.weights["W_dec"][dead]).square().sum(1).mean()
        size = residual.square().sum(1).mean().clamp(min=torch.finfo(left.dtype).tiny)
        return recipe.revive * left / size

    @torch.no_grad()
    def constrain_gradient(self) -> None:
        """Take from the decoder's gradient what would change the length of its rows."""
        W_dec = self.weights["W_dec"]
        assert W_dec.grad is not None
        W_dec.grad -= (W_dec.grad * W_dec).sum(1, keepdim=True) * W_dec

    @torch.no_grad()
    def constrain(self) -> None:
        """Bring the decoder's rows back to length 1."""
        W_dec = self.weights["W_dec"]
        W_dec.copy_(normalize(W_dec, dim=1))

    def thresholds(self) -> Float[Tensor, " feature"]:
        """What an activation must exceed once training is over, for scaled rows; 0 for ReLU and TopK."""
        if self.recipe.architecture == JUMP_RELU:
            return self.weights["log_threshold"].detach().exp()
        if self.recipe.architecture == BATCH_TOP_K:
            return self.threshold.expand_as(self.asleep)
        return torch.zeros_like(self.asleep)
