"""The losses of nano's and pico's training: cross-entropy and the divergence from a teacher, beside plain sums."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gemmascope.config import GemmaConfig
from gemmascope.nano.training.batches import IGNORED
from gemmascope.nano.training.distillation.losses import divergence, on_teacher, on_texts, soft_loss, text_loss
from gemmascope.nano.training.train import config_json_of, fresh

N_ROWS, N_VOCAB, TEMPERATURE = 6, 11, 2.0


def logits(seed: int) -> Tensor:
    return 3 * torch.randn(N_ROWS, N_VOCAB, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def targets() -> Tensor:
    return torch.tensor([3, IGNORED, 0, 10, IGNORED, 7])


def plain_divergence(student: Tensor, teacher: Tensor) -> list[float]:
    """T^2 sum p (log p - log q), a row at a time."""
    found = []
    for s, t in zip(student / TEMPERATURE, teacher / TEMPERATURE, strict=True):
        p, q = (row.exp() / row.exp().sum() for row in (t, s))
        found.append(TEMPERATURE**2 * sum(float(a * (a / b).log()) for a, b in zip(p, q, strict=True)))
    return found


def test_the_divergence_is_its_sum_and_none_of_a_teacher_from_itself() -> None:
    student, teacher = logits(0), logits(1)
    assert divergence(student, teacher, TEMPERATURE).tolist() == pytest.approx(plain_divergence(student, teacher))
    assert divergence(teacher, teacher, TEMPERATURE).tolist() == pytest.approx([0.0] * N_ROWS, abs=1e-12)


def test_rows_without_a_target_count_in_neither_part() -> None:
    student, teacher, kept = logits(0), logits(1), targets() != IGNORED
    paid = [-float(row.log_softmax(-1)[t]) for row, t in zip(student, targets().tolist(), strict=True) if t != IGNORED]
    hard = sum(paid) / len(paid)
    apart = [d for d, counts in zip(plain_divergence(student, teacher), kept.tolist(), strict=True) if counts]
    assert float(text_loss(student, targets())) == pytest.approx(hard)
    assert float(soft_loss(student, teacher, targets(), TEMPERATURE, 0.0)) == pytest.approx(hard)
    assert float(soft_loss(student, teacher, targets(), TEMPERATURE, 0.8)) == pytest.approx(
        0.8 * sum(apart) / len(apart) + 0.2 * hard
    )


def test_a_student_that_learns_from_a_teacher_alone_comes_closer_and_the_teacher_stays() -> None:
    torch.manual_seed(0)
    config = GemmaConfig.from_dict(config_json_of("pico", 97))
    teacher, student = fresh(config), fresh(config)
    ids = torch.randint(3, 97, (4, 20))
    before = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    paid = []
    for _ in range(30):
        loss = on_teacher(teacher, TEMPERATURE, 1.0)(student, ids, ids)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        paid.append(loss.item())
    assert paid[-1] < 0.5 * paid[0]
    assert on_teacher(teacher, TEMPERATURE, 1.0)(teacher, ids, ids).item() == pytest.approx(0.0, abs=1e-4), (
        "to the rounding of bfloat16"
    )
    assert all(weight.equal(before[name]) for name, weight in teacher.state_dict().items())
    assert on_texts()(student, ids, ids).item() > 0
