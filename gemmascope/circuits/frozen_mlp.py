"""The MLP of a frozen run, by RelP: gelu(gate) / gate, up and gelu(gate) are held, and each factor takes half.

A neuron is a = gelu(g) * u. With r = gelu(g) / g held, it is read as (gelu(g) / 2) * u + (r * u / 2) * g, whose value is a
again: shares add up to the neuron, which gradients do not.

References: Jafari et al., "RelP" (arXiv 2508.21258).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gemmascope.model.modules import MLP


class FrozenMLP:
    """An MLP whose neurons are held at their values in a run.

    Attributes:
        act: The neurons gelu(gate) * up, [pos, d_mlp].
        from_up: What each neuron takes of its up projection: gelu(gate) / 2, [pos, d_mlp].
        from_gate: What it takes of its gate: gelu(gate) / gate * up / 2.
    """

    def __init__(self, mlp: MLP, mlp_in: Tensor, in_gain: Tensor, out_gain: Tensor) -> None:
        """mlp_in: [pos, d_model], what the MLP read in the run. in_gain, out_gain: what its norms multiply rows by."""
        self.w_gate, self.w_up, self.w_down = (
            linear.weight.detach().float() for linear in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
        )
        gate, up = mlp.gate_proj(mlp_in).float(), mlp.up_proj(mlp_in).float()
        active = torch.nn.functional.gelu(gate, approximate="tanh")
        # gelu(g) / g is 1/2 at 0.
        ratio = torch.where(gate == 0, 0.5, active / torch.where(gate == 0, 1.0, gate))
        self.act, self.from_up, self.from_gate = active * up, active / 2, ratio * up / 2
        self.in_gain, self.out_gain = in_gain, out_gain

    def at_neurons(self, v: Float[Tensor, "target pos d_model"]) -> Float[Tensor, "target pos d_mlp"]:
        """Directions that are read from mlp_out, as directions at the neurons."""
        return (v * self.out_gain[: v.shape[1]]) @ self.w_down

    def below_neurons(self, s: Float[Tensor, "target pos d_mlp"]) -> Float[Tensor, "target pos d_model"]:
        """Directions at the neurons, as directions at the stream before the MLP."""
        stop = s.shape[1]
        below = (s * self.from_up[:stop]) @ self.w_up
        below += (s * self.from_gate[:stop]) @ self.w_gate
        return below * self.in_gain[:stop]

    def below(self, v: Float[Tensor, "target pos d_model"]) -> Float[Tensor, "target pos d_model"]:
        """What directions at mlp_out read of the stream before the MLP."""
        return self.below_neurons(self.at_neurons(v))

    def below_at(self, v: Float[Tensor, "target d_model"], pos: Int[Tensor, " target"]) -> Float[Tensor, "target d_model"]:
        """As below, for directions at one position each."""
        s = (v * self.out_gain[pos]) @ self.w_down
        below: Tensor = ((s * self.from_up[pos]) @ self.w_up + (s * self.from_gate[pos]) @ self.w_gate) * self.in_gain[pos]
        return below

    def written(self, x: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos d_model"]:
        """What the MLP adds to the stream for a part x of the stream before it."""
        read = x * self.in_gain
        act = self.from_up * (read @ self.w_up.T) + self.from_gate * (read @ self.w_gate.T)
        added: Tensor = (act @ self.w_down.T) * self.out_gain
        return added

    def readers(self, pos: Tensor, neurons: Tensor) -> Float[Tensor, "neuron d_model"]:
        """What each of some neurons reads of the stream before the MLP, at its position."""
        read = self.from_up[pos, neurons, None] * self.w_up[neurons]
        read += self.from_gate[pos, neurons, None] * self.w_gate[neurons]
        return read * self.in_gain[pos]

    def writers(self, pos: Tensor, neurons: Tensor) -> Float[Tensor, "neuron d_model"]:
        """What each of some neurons wrote to the stream at its position."""
        written: Tensor = self.act[pos, neurons, None] * self.w_down[:, neurons].T * self.out_gain[pos]
        return written
