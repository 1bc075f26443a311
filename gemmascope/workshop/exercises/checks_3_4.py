"""Exercises of notebooks 3 and 4: patching by hand, sweeps, effects, circuits."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from gemmascope.edits.make import ablate, patch
from gemmascope.model.model import Model
from gemmascope.run.trace import Trace
from gemmascope.run.tracing import trace
from gemmascope.sweeps.metrics import logit_diff
from gemmascope.sweeps.sweep import sweep
from gemmascope.workshop.exercises.inputs import normal, small_model, two_prompts
from gemmascope.workshop.grading import CheckFailed, Exercise, Wrong
from gemmascope.workshop.learners_code import Head

# 3.1: the patch itself, as a function of the value at the site


def _values(seed: int) -> tuple[Tensor, Tensor, int]:
    """The run's value at a site [pos, d_model], the clean run's there, and a position."""
    return normal(seed, 9, 24), normal(seed + 1, 9, 24), 1 + seed % 7


def _patched(value: Tensor, clean: Tensor, pos: int) -> Tensor:
    value = value.clone()
    value[pos] = clean[pos]
    return value


ex_3_1 = Exercise(
    "3.1",
    _values,
    _patched,
    [
        Wrong(
            lambda value, clean, pos: value,
            "you patched the run with its own activation: every cell equals the baseline",
        ),
        Wrong(lambda value, clean, pos: clean, "every position was patched: only pos is to change"),
        Wrong(lambda value, clean, pos: _patched(value, clean, pos + 1), "off by one: the effect shows a position later"),
        Wrong(lambda value, clean, pos: _patched(value, clean, pos - 1), "off by one: the effect shows a position earlier"),
        Wrong(
            lambda value, clean, pos: _patched(clean, value, pos),
            "clean and corrupted have changed places: the corrupted run goes on with one clean position",
        ),
        Wrong(
            lambda value, clean, pos: _patched(value, value + clean, pos),
            "the clean value was added: a patch takes the place of what stands there",
        ),
        Wrong(
            lambda value, clean, pos: _patched(value, torch.zeros_like(clean), pos), "zero was written: that is an ablation"
        ),
    ],
    "the value that the run goes on with [pos, d_model]",
)


# 3.2: a patched run, with the package


def _pair(seed: int) -> tuple[Model, list[int], list[int], int, int]:
    """A model, a clean and a corrupted prompt, a layer and a position."""
    clean, corrupt = two_prompts(seed)
    differs = next(at for at, (a, b) in enumerate(zip(clean, corrupt, strict=True)) if a != b)
    return small_model(seed % 8), clean, corrupt, seed % 2, differs


def _run(model: Model, run: list[int], source: list[int], layer: int, pos: int | None) -> Trace:
    edit = patch("resid_pre", trace(source, model=model), layer=layer, pos=pos)
    patched: Trace = trace(run, model=model, edits=[edit])
    return patched


def _next_logits(returned: object, *arguments: object) -> Tensor:
    if not isinstance(returned, Trace):
        raise CheckFailed(f"return the trace of the patched run, what gs.trace(...) gives; given {type(returned).__name__}")
    return returned.next_logits


ex_3_2 = Exercise(
    "3.2",
    _pair,
    lambda m, clean, corrupt, layer, pos: _run(m, corrupt, clean, layer, pos),
    [
        Wrong(
            lambda m, clean, corrupt, layer, pos: _run(m, corrupt, corrupt, layer, pos),
            "you patched the run with its own activation: every cell equals the baseline",
        ),
        Wrong(
            lambda m, clean, corrupt, layer, pos: _run(m, clean, corrupt, layer, pos),
            "clean and corrupted have changed places: this is the clean run with a corrupted value",
        ),
        Wrong(
            lambda m, clean, corrupt, layer, pos: _run(m, corrupt, clean, layer, None),
            "this is the clean run: either every position was patched (without pos= an edit is made at all of them), or the "
            "clean prompt was run",
        ),
        Wrong(
            lambda m, clean, corrupt, layer, pos: _run(m, corrupt, clean, layer + 1, pos),
            "off by one: this is the stream before the next layer",
        ),
        Wrong(
            lambda m, clean, corrupt, layer, pos: _run(m, corrupt, clean, layer, pos + 1),
            "off by one: the effect shows a position later",
        ),
    ],
    "the trace of the patched run",
    read=_next_logits,
)


# 3.3: a share of the gap


def _measured(seed: int) -> tuple[Tensor, float, float]:
    """The metric of patched runs [layer, pos], of the clean and of the corrupted run."""
    return normal(seed, 3, 9) * 4, 2.0 + seed % 5, -1.5 - seed % 3


ex_3_3 = Exercise(
    "3.3",
    _measured,
    lambda patched, clean, corrupt: (patched - corrupt) / (clean - corrupt),
    [
        Wrong(
            lambda patched, clean, corrupt: (patched - clean) / (corrupt - clean),
            "turned round: 0 is to mean that nothing was restored, 1 that the run is as the clean one",
        ),
        Wrong(
            lambda patched, clean, corrupt: patched / clean,
            "divided by the clean metric: divide by the gap, clean - corrupt",
        ),
        Wrong(
            lambda patched, clean, corrupt: patched / (clean - corrupt), "the corrupted run's metric was not taken off first"
        ),
        Wrong(
            lambda patched, clean, corrupt: patched - corrupt, "this is the effect in units of the metric: divide by the gap"
        ),
        Wrong(
            lambda patched, clean, corrupt: (patched - corrupt) / (corrupt - clean),
            "the sign is turned round: the gap is clean - corrupt",
        ),
        Wrong(
            lambda patched, clean, corrupt: 100 * (patched - corrupt) / (clean - corrupt),
            "this is in percent: a share is 1 where the whole gap is closed",
        ),
    ],
    "the share of the gap [layer, pos]",
)


# 3.4: the loop that a sweep is


def _sweep(seed: int) -> tuple[Model, list[int], list[int], int, int]:
    """A model, two prompts of equal length, and two token ids: the answer and the other."""
    clean, corrupt = two_prompts(seed, 7)
    return small_model(seed % 8), clean, corrupt, 3 + seed % 30, 3 + (seed + 7) % 30


def _cells(
    model: Model, clean: list[int], corrupt: list[int], a: int, b: int, *, into: str = "corrupt", subtract: bool = True
) -> Tensor:
    metric = logit_diff(a, b)
    result = sweep(clean, corrupt, metric, site="resid_pre", into=into, model=model, progress=False)
    return torch.tensor(result.effect.values + (0.0 if subtract else getattr(result, into)))


ex_3_4 = Exercise(
    "3.4",
    _sweep,
    _cells,
    [
        Wrong(
            lambda *arguments: torch.zeros_like(_cells(*arguments)),
            "you patched the run with its own activation: every cell equals the baseline",
        ),
        Wrong(
            lambda *arguments: _cells(*arguments, subtract=False),
            "this is the metric of every patched run: the effect is what it changed, less the corrupted run's metric",
        ),
        Wrong(
            lambda *arguments: _cells(*arguments, into="clean"),
            "the clean run was patched with corrupted values: that asks what breaks the answer, not what restores it",
        ),
        Wrong(
            lambda *arguments: torch.cat((torch.zeros(3, 1), _cells(*arguments)[:, :-1]), 1),
            "off by one: the effect shows a position later",
        ),
        Wrong(lambda *arguments: -_cells(*arguments), "the sign is turned round: patched less corrupted"),
        Wrong(lambda *arguments: _cells(*arguments).T, "the axes are [layer, pos]"),
    ],
    "the effect of every cell [layer, pos]",
    tolerance=1e-3,
)


# 4.1: the best cells


def _grid(seed: int) -> tuple[Tensor, int]:
    return normal(seed, 6, 4), 3 + seed % 3


def _strongest(effect: Tensor, k: int) -> list[list[int]]:
    order = effect.flatten().abs().argsort(descending=True)[:k].tolist()
    return sorted([n // effect.shape[1], n % effect.shape[1]] for n in order)


def _as_pairs(returned: Iterable[Iterable[int]], *arguments: object) -> Tensor:
    return torch.tensor(sorted([int(n) for n in pair] for pair in returned))


ex_4_1 = Exercise(
    "4.1",
    _grid,
    _strongest,
    [
        Wrong(
            lambda effect, k: _strongest(effect.clamp(min=0), k),
            "only heads that raise the metric were taken: a head that lowers it works on the answer as well; use abs",
        ),
        Wrong(
            lambda effect, k: sorted(
                [n % effect.shape[1], n // effect.shape[1]]
                for n in effect.flatten().abs().argsort(descending=True)[:k].tolist()
            ),
            "layer and head have changed places",
        ),
        Wrong(
            lambda effect, k: _strongest(1 / effect.abs().clamp(min=1e-9), k), "these are the weakest: sort the other way"
        ),
    ],
    "a list of pairs of whole numbers, (layer, head)",
    read=_as_pairs,
)


# 4.2: what is left when all heads outside a circuit are silenced


def _circuit(seed: int) -> tuple[Model, list[int], list[Head]]:
    # One layer has none of them, so that every way of going wrong silences a head.
    heads = [Head(layer, head) for layer in range(3) if layer != seed % 3 for head in range(4)]
    order = torch.randperm(len(heads), generator=torch.Generator().manual_seed(seed)).tolist()
    return small_model(seed % 8), two_prompts(seed)[0], [heads[i] for i in order[:5]]


def _silenced(model: Model, prompt: list[int], heads: list[Head]) -> Trace:
    edits = []
    for layer in range(model.n_layers):
        in_layer = [head for at, head in heads if at == layer]
        if in_layer:
            edits.append(ablate("z", layer=layer, head=in_layer))
    silenced: Trace = trace(prompt, model=model, edits=edits)
    return silenced


def _heads_outside(model: Model, circuit: list[Head]) -> list[Head]:
    every = (Head(layer, head) for layer in range(model.n_layers) for head in range(model.config.n_heads))
    return [head for head in every if head not in circuit]


ex_4_2 = Exercise(
    "4.2",
    _circuit,
    lambda model, prompt, circuit: _silenced(model, prompt, _heads_outside(model, circuit)),
    [
        Wrong(
            lambda model, prompt, circuit: _silenced(model, prompt, circuit),
            "the circuit itself was silenced: what lies outside it is to be, so that the circuit alone is left",
        ),
        Wrong(lambda model, prompt, circuit: trace(prompt, model=model), "nothing was silenced: this is the run as it was"),
        Wrong(
            lambda model, prompt, circuit: _silenced(model, prompt, [Head(a, h) for a in range(3) for h in range(4)]),
            "every head was silenced, the circuit's too",
        ),
        Wrong(
            lambda model, prompt, circuit: _silenced(
                model, prompt, [Head(a, h) for a in range(3) for h in range(4) if a not in {at for at, _ in circuit}]
            ),
            "only layers without any head of the circuit were silenced: go head by head",
        ),
    ],
    "the trace of the run",
    read=_next_logits,
)
