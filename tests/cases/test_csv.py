"""CSV tables keep their rows, texts and numbers whatever characters the tokens begin with."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gemmascope as gs
from gemmascope.__main__ import main
from gemmascope.files.csv_tables import csv_text, plain_text, safe_text

ODD = ["=1+1", "+1", "-1", "@x", "\tx", "\rx", "\nx", "＝x", "'=x", "''-x", "'s", "'", "", " =x", "a,b", 'a"b', "a\rb",
       "a\nb",        "a\r\nb", "\r", "<bos>", "nan", "1e3", "\u2028", "😀"]  # fmt: skip


def frame(texts: list[str]) -> pandas.DataFrame:
    return pandas.DataFrame({"token": texts, "effect": [-0.5 * i for i in range(len(texts))], "pos": range(len(texts))})


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.lists(st.one_of(st.sampled_from(ODD), st.text(st.characters(codec="utf-8", exclude_characters="\0"))), min_size=1))
def test_python_and_pandas_read_the_table_back(texts: list[str]) -> None:
    written = csv_text(frame(texts))
    rows = list(csv.DictReader(io.StringIO(written, newline="")))
    assert [plain_text(row["token"]) for row in rows] == texts
    assert [float(row["effect"]) for row in rows] == [-0.5 * i for i in range(len(texts))]
    read = pandas.read_csv(io.StringIO(written, newline=""), keep_default_na=False, dtype={"token": str})
    assert [plain_text(text) for text in read["token"]] == texts
    assert read["effect"].tolist() == [-0.5 * i for i in range(len(texts))]


@pytest.mark.parametrize("text", ODD)
def test_no_text_begins_a_formula(text: str) -> None:
    cell = safe_text(text)
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠"))
    assert plain_text(cell) == text


def test_numbers_and_missing_values_are_written_unchanged() -> None:
    table = pandas.DataFrame({"=a": [-1.5, float("nan")], "n": [-3, 4], "is": ["exact", None]})
    assert csv_text(table) == "'=a,n,is\n-1.5,-3,exact\n,4,\n"


def test_the_command_line_and_the_lab_write_safe_tables(tmp_path: Path) -> None:
    clean, corrupt = "=1 Mary went\rto", "=1 John went\rto"
    options = ["--answer", " Mary", "--against", " John", "--csv", str(tmp_path / "s.csv")]
    assert main(["patch", clean, corrupt, *options]) == 0
    lab = gs.patching_lab(clean, corrupt, " Mary", " John")
    lab.run()
    lab.wait()
    lab.save(tmp_path / "lab.csv")
    for name in ("s.csv", "lab.csv"):
        with (tmp_path / name).open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
        n_pos = len(gs.load().ids(corrupt))
        assert len(rows) == 6 * n_pos
        tokens = [row["token"] for row in rows[:n_pos]]
        assert tokens[1] == "'=" or tokens[1].startswith("'=")
        assert [plain_text(token) for token in tokens] == gs.trace(corrupt).tokens
        assert all(abs(float(row["effect"])) < 100 for row in rows)


def test_the_help_of_csv_names_the_escaping(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["patch", "--help"])
    assert "apostrophe" in capsys.readouterr().out
