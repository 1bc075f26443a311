"""What a porter types first that has another name here: the error says the call."""

from __future__ import annotations

import copy
import pickle
import re

import pytest

import gemmascope as gs
from gemmascope.peer_calls import OF_MODEL, OF_TRACE

CLEAN = "When Mary and John went to the store, John gave a drink to"


@pytest.mark.nano
@pytest.mark.parametrize("name", OF_MODEL)
def test_a_name_of_another_librarys_model_is_answered_with_the_call_here(name: str) -> None:
    with pytest.raises(AttributeError, match=re.escape(f"no attribute '{name}'. Here it is {OF_MODEL[name]}")):
        getattr(gs.load(), name)


@pytest.mark.nano
@pytest.mark.parametrize("name", OF_TRACE)
def test_a_name_of_another_librarys_cache_is_answered_with_the_call_here(name: str) -> None:
    with pytest.raises(AttributeError, match=re.escape(f"no attribute '{name}'. Here it is {OF_TRACE[name]}")):
        getattr(gs.trace(CLEAN), name)


@pytest.mark.nano
@pytest.mark.parametrize("table", [OF_MODEL, OF_TRACE])
def test_every_name_in_the_advice_exists(table: dict[str, str]) -> None:
    model, t = gs.load(), gs.trace(CLEAN)
    objects = {"gs": gs, "model": model, "t": t, "tokenizer": model.tokenizer, ")": model.layer(0)}
    found = [match for advice in table.values() for match in re.findall(r"(gs|model|t|tokenizer|\))\.(\w+)", advice)]
    assert len(found) >= len(table) - 1
    for owner, name in found:
        assert hasattr(objects[owner], name) or (owner, name) == (")", "softmax"), (owner, name)


@pytest.mark.nano
def test_another_name_gets_no_advice() -> None:
    for thing in (gs.load(), gs.trace(CLEAN)):
        with pytest.raises(AttributeError, match=r"no attribute 'nonsense'$"):
            _ = thing.nonsense  # type: ignore[union-attr]


@pytest.mark.nano
def test_a_trace_is_no_sequence_of_its_sites() -> None:
    t = gs.trace(CLEAN)
    with pytest.raises(TypeError, match="not iterable"):
        list(t)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"not iterable|not a container"):
        _ = "pattern" in t  # type: ignore[operator]
    for same in (copy.copy(t), copy.deepcopy(t), pickle.loads(pickle.dumps(t))):
        assert same["pattern", 3].equal(t["pattern", 3])


@pytest.mark.nano
def test_an_attribute_error_inside_a_property_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: gs.Trace) -> None:
        raise AttributeError("inside")

    monkeypatch.setattr(gs.Trace, "stream", property(fail))
    with pytest.raises(AttributeError, match=r"^inside$"):
        _ = gs.trace(CLEAN).stream


@pytest.mark.nano
def test_an_empty_list_of_metrics_and_features_to_decode_are_refused_with_what_to_do() -> None:
    with pytest.raises(gs.errors.SweepError, match="the list of metrics is empty: give one"):
        gs.sweep(CLEAN, CLEAN.replace("John gave", "Mary gave"), [], site="resid_pre", progress=False)
    sae = gs.load_sae()
    with pytest.raises(gs.errors.DictionaryError, match=r"f\.reconstruction"):
        sae.decode(sae.encode(gs.trace(CLEAN)))  # type: ignore[arg-type]
