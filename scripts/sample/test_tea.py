import pytest
from tea import brew


@pytest.mark.parametrize("tea", ["white", "oolong", "black"])
def test_tea_is_lovely_when_it_gets_its_time(tea: str) -> None:
    assert brew(tea).taste == "lovely"


def test_haste_makes_it_thin() -> None:
    assert brew("green", minutes=1).taste == "thin"


def test_a_phone_call_makes_it_bitter() -> None:
    assert brew("black", minutes=7).taste == "bitter"


def test_coffee_is_another_matter() -> None:
    with pytest.raises(KeyError, match="coffee"):
        brew("coffee")
