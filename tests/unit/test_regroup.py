"""Which mini-batches of files are kept when some files came, went or changed (R202)."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_parallelrun.datasets.dataset import FileItem
from prefect_parallelrun.planning.regroup import Kept, plain, regroup


def listing(text: str, time: int = 1) -> list[FileItem]:
    """One file for each letter; a capital one is the same file at another time."""
    return [FileItem(f"/{one.lower()}", 1, time + one.isupper()) for one in text]


def groups(text: str, sizes) -> list[str]:
    letters = iter(text)
    return ["".join(islice(letters, size)) for size, times in sizes for _ in range(times)]


@pytest.mark.parametrize(
    ("now", "cut", "kept"),
    [
        ("abcdef", ["ab", "cd", "ef"], [Kept(0, 0, 3)]),
        ("abcdefg", ["ab", "cd", "ef", "g"], [Kept(0, 0, 3)]),
        ("abcdeF", ["ab", "cd", "eF"], [Kept(0, 0, 2)]),
        ("Abcdef", ["Ab", "cd", "ef"], [Kept(1, 1, 2)]),
        ("bcdef", ["b", "cd", "ef"], [Kept(1, 1, 2)]),
        ("abcde", ["ab", "cd", "e"], [Kept(0, 0, 2)]),
        ("abef", ["ab", "ef"], [Kept(0, 0, 1), Kept(2, 1, 1)]),
        ("abCdef", ["ab", "Cd", "ef"], [Kept(0, 0, 1), Kept(2, 2, 1)]),
        ("ABCDEF", ["AB", "CD", "EF"], []),
        ("", [], []),
    ],
)
def test_what_is_kept_and_what_is_cut_anew(now, cut, kept):
    """A mini-batch is kept exactly if all its files are there, unchanged; the rest is cut anew in order."""
    found = regroup(listing("abcdef"), [(2, 3)], listing(now), 2)

    assert groups(now, found.sizes) == cut
    assert (found.kept, found.there, found.here) == (kept, 3, len(cut))


def test_a_new_file_between_two_or_inside_of_one():
    """Between two kept mini-batches it is one of its own; inside of one it breaks that, whose files are cut anew."""
    between = regroup(listing("abxy"), [(2, 2)], listing("abmxy"), 2)
    inside = regroup(listing("aexy"), [(2, 2)], listing("acexy"), 2)

    assert groups("abmxy", between.sizes) == ["ab", "m", "xy"]
    assert between.kept == [Kept(0, 0, 1), Kept(1, 2, 1)]
    assert groups("acexy", inside.sizes) == ["ac", "e", "xy"]
    assert inside.kept == [Kept(1, 2, 1)]


def test_what_may_change_unseen_is_not_kept():
    """A file of which the storage tells neither time nor etag may be another one."""
    blind = [FileItem("/a", 1, 0), FileItem("/b", 1, 0)]
    told = [FileItem("/a", 1, 0, "x"), FileItem("/b", 1, 0, "y")]

    assert regroup(blind, [(1, 2)], blind, 1).kept == []
    assert regroup(told, [(1, 2)], told, 1).kept == [Kept(0, 0, 2)]


def test_a_listing_that_is_not_the_one_that_was_cut():
    """It is refused, whether it has more files or fewer."""
    for sizes in ([(2, 1)], [(2, 3)]):
        with pytest.raises(ValueError, match="files than its mini-batches"):
            regroup(listing("abc"), sizes, listing("abc"), 2)


LETTERS = "abcdefghijklmnopqrst"


@given(
    before=st.sets(st.sampled_from(LETTERS)),
    now=st.dictionaries(st.sampled_from(LETTERS), st.booleans()),
    again=st.dictionaries(st.sampled_from(LETTERS), st.booleans()),
    size=st.integers(1, 5),
)
def test_whatever_is_edited(before, now, again, size):
    """Every file is in one mini-batch, in order; those kept have the files that they had; edits may follow edits."""

    def files(chosen):
        return "".join(one.upper() if chosen[one] else one for one in sorted(chosen))

    old, sizes = files(dict.fromkeys(before, False)), None
    for new in (files(now), files(again)):
        found = regroup(listing(old), sizes, listing(new), size)
        old_groups = groups(old, sizes if sizes is not None else plain(len(old), size))
        new_groups = groups(new, found.sizes)

        assert "".join(new_groups) == new
        assert all(1 <= len(group) <= size for group in new_groups)
        assert (len(old_groups), len(new_groups)) == (found.there, found.here)
        pairs = [(there + n, here + n) for there, here, length in found.kept for n in range(length)]
        assert all(old_groups[there] == new_groups[here] for there, here in pairs)
        # All that could be kept is: its files follow one another in the new listing, too.
        assert [there for there, _ in pairs] == [
            place for place, group in enumerate(old_groups) if group in new
        ]
        old, sizes = new, found.sizes
