"""Frames on the channel: however the bytes are cut, and whatever else comes among them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import prefect_parallelrun.runtime_folder  # noqa: F401  (puts the runtime folder on the path)
from prefect_parallelrun_runtime import channel

FRAMES = st.lists(
    st.tuples(
        st.sampled_from(channel.KINDS),
        st.integers(0, 2**32 - 1),
        st.none() | st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
        st.binary(max_size=200),
    ),
    max_size=8,
)
CUTS = st.lists(st.integers(1, 90), min_size=1, max_size=20)


def cut(data: bytes, lengths: list[int]) -> list[bytes]:
    pieces, place = [], 0
    while data:
        length = lengths[place % len(lengths)]
        pieces.append(data[:length])
        data, place = data[length:], place + 1
    return pieces


@given(frames=FRAMES, lengths=CUTS)
def test_any_cut_of_frames_gives_the_same_frames(frames, lengths):
    """Frames come out whole, once, in order, whatever pieces their bytes arrive in (R200)."""
    packed = [channel.pack(*frame) for frame in frames]
    splitter = channel.Splitter()

    found = [frame for piece in cut(b"".join(packed), lengths) for frame in splitter.feed(piece)]

    assert [raw for _, _, raw in found] == packed
    assert [(kind, tag) for kind, tag, _ in found] == [frame[:2] for frame in frames]
    for (kind, tag, raw), (_, _, header, payload) in zip(found, frames, strict=True):
        (frame,) = channel.frames(raw)
        assert frame[:2] == (kind, tag)
        assert (frame.header == b"") == (header is None)
        assert header is None or frame.json() == header
        assert frame.payload == payload


@given(
    frames=FRAMES,
    garbage=st.binary(min_size=channel.PREFIX.size).filter(
        lambda data: data[0] not in channel.KINDS
    ),
    lengths=CUTS,
)
def test_garbage_is_noticed_and_costs_no_frame_before_it(frames, garbage, lengths):
    """What came whole before bytes that are no frame is there, and nothing after them (R207)."""
    packed = [channel.pack(*frame) for frame in frames]
    found = []

    with pytest.raises(channel.Garbage) as caught:
        split_into(found, cut(b"".join(packed) + garbage, lengths))

    assert [raw for _, _, raw in found + caught.value.complete] == packed


def split_into(found: list, pieces: list[bytes]) -> None:
    splitter = channel.Splitter()
    for piece in pieces:
        found += splitter.feed(piece)


def test_a_header_that_is_too_long_is_garbage():
    """A length that no header of ours has is not waited for (R205)."""
    announced = channel.PREFIX.pack(channel.RESULT, 1, channel.HEADER_LIMIT + 1, 0)

    with pytest.raises(channel.Garbage):
        channel.Splitter().feed(announced)
    assert channel.Splitter().feed(channel.PREFIX.pack(channel.RESULT, 1, 5, 2**40)) == []
