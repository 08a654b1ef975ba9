"""What text looks like, by its characters and bytes."""

from collections import Counter

import numpy as np
import pytest

from probes.text_content import byte_entropy, odd_character_share, script_surprise, scripts


@pytest.mark.parametrize("text", ["plain text,\n\twith layout\r\n", "日本語のテキスト", "naïve — ‘quoted’ ½ €"])
def test_text_of_any_language_has_no_odd_characters(text: str) -> None:
    assert odd_character_share(Counter(text)) == 0


def test_odd_are_controls_the_unassigned_and_bytes_that_are_no_text() -> None:
    assert odd_character_share(Counter("ab\x00\x1b")) == 0.5
    assert odd_character_share(Counter("a\x85\ue000\U000e0fff")) == 0.75
    assert odd_character_share(Counter(b"ab\xff\xfe".decode(errors="replace"))) == 0.5
    assert odd_character_share(Counter()) == 0


def test_bytes_read_as_text_are_mostly_recognized_by_their_odd_characters() -> None:
    """As Latin-1, 60 of the 256 bytes are control characters that lay nothing out; as UTF-8 most are nothing."""
    content = np.random.default_rng(0).bytes(20_000)

    assert odd_character_share(Counter(content.decode("latin-1"))) == pytest.approx(61 / 256, abs=0.02)
    assert odd_character_share(Counter(content.decode(errors="replace"))) > 0.4


def test_byte_entropy_is_8_for_even_bytes_and_0_for_one() -> None:
    assert byte_entropy(bytes(range(256)) * 3) == pytest.approx(8)
    assert byte_entropy(b"aaaa") == 0
    assert byte_entropy(b"aabb") == pytest.approx(1)
    assert byte_entropy(b"") == 0


def test_letters_belong_to_scripts_and_nothing_else_does() -> None:
    assert scripts(Counter("Ab, 1 я я 語 ñ")) == {"LATIN": 3, "CYRILLIC": 2, "CJK": 1}


def test_a_script_that_the_base_hardly_has_is_a_surprise() -> None:
    base = {"LATIN": 998, "GREEK": 0}

    assert script_surprise({"LATIN": 5}, base) == pytest.approx(np.log2(1000 / 999))
    assert script_surprise({"GREEK": 5}, base) == pytest.approx(np.log2(1000))
    assert script_surprise({"LATIN": 1, "GREEK": 1}, base) == pytest.approx(np.log2(1000 / 999) / 2 + np.log2(1000) / 2)
    assert script_surprise({}, base) == 0
