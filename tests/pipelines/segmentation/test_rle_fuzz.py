"""Run lengths of any mask come back; any text is a mask or a refusal."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from src.pipelines.segmentation.report import decode_rle, encode_rle
from src.script import UserError


@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_any_mask_comes_back(height: int, width: int, data: st.DataObject) -> None:
    size = height * width
    bits = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    mask = np.array(bits).reshape(height, width)
    assert np.array_equal(decode_rle(encode_rle(mask), height, width), mask)


NUMBERS = st.lists(st.integers(-(2**70), 2**70) | st.integers(-2, 20), max_size=6)


@given(st.text(max_size=30) | NUMBERS.map(lambda numbers: " ".join(map(str, numbers))))
@example("9223372036854775807 9223372036854775807")
@example("99999999999999999999 1")
@example("2 9223372036854775807")
def test_any_text_is_a_mask_or_a_refusal(text: str) -> None:
    try:
        mask = decode_rle(text, 3, 4)
    except UserError as error:
        assert "run lengths" in str(error)
        return
    assert mask.shape == (3, 4) and mask.dtype == bool
    assert mask.sum() == sum(int(word) for word in text.split()[1::2])
