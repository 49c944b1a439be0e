"""Work of one rank: what the ranks agree on."""

from collections.abc import Callable

import pytest

from pets_core.errors import PetsError
from pets_core.runtime import rank


def unreadable() -> str:
    raise PetsError("the model is damaged")


@pytest.fixture
def gathered(monkeypatch) -> Callable[[str], None]:
    """Function that sets the message that another rank, of a higher number, gathers."""

    def gather(message: str) -> None:
        monkeypatch.setattr(rank, "gather_object", lambda own: [*own, message])

    return gather


def test_all_ranks_have_a_result_or_none(gathered):
    gathered("")
    assert rank.try_on_all_ranks(lambda: "model") == ("model", None)
    assert rank.try_on_all_ranks(unreadable) == (None, "the model is damaged")
    gathered("the store is unavailable")
    assert rank.try_on_all_ranks(lambda: "model") == (None, "the store is unavailable")
    assert rank.try_on_all_ranks(unreadable) == (None, "the model is damaged")


def test_errors_that_are_not_of_the_input_end_the_rank(gathered):
    gathered("")
    with pytest.raises(ZeroDivisionError):
        rank.try_on_all_ranks(lambda: 1 // 0)
