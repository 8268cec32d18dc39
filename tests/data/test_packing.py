"""Where documents lie in a row."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vlmax.data.packing import fits, lay, segments, spans

DOCUMENTS = st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=12), min_size=1, max_size=8)


@given(DOCUMENTS, st.integers(1, 40))
def test_a_row_is_filled_in_order_and_only_its_last_document_is_cut(documents, room):
    places = spans([len(d) for d in documents], room)
    row = lay([np.asarray(d, np.int32) for d in documents], places, room, 0)
    everything = [token for d in documents for token in d][:room]
    assert row.dtype == np.int32 and row.tolist() == everything + [0] * (room - len(everything))
    whole = [stop - start == len(d) for d, (start, stop) in zip(documents, places, strict=False)]
    assert all(whole[:-1])
    if len(places) < len(documents) or not whole[-1]:
        assert places[-1][1] == room  # what is left out or cut had no room


@given(DOCUMENTS, st.integers(1, 40))
def test_segments_number_the_documents_and_are_zero_at_padding(documents, room):
    places = spans([len(d) for d in documents], room)
    ids = segments(places, room)
    for number, (start, stop) in enumerate(places, 1):
        assert start < stop
        assert np.flatnonzero(ids == number).tolist() == list(range(start, stop))
    assert (ids == 0).sum() == room - places[-1][1]


@given(DOCUMENTS, st.integers(1, 40))
def test_what_fits_is_as_much_as_goes_in_whole(documents, room):
    lengths = [len(d) for d in documents]
    count = fits(lengths, room)
    assert sum(lengths[:count]) <= room
    assert count == len(lengths) or sum(lengths[: count + 1]) > room
