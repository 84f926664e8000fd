"""Request ids: in order, unlike each other, and not made twice by two processes."""

from __future__ import annotations

import os
import time

from router.api.ids import AT_ONCE, BASE32, Ids, new_id


def test_ids_sort_by_time_and_never_repeat() -> None:
    ids = Ids()
    before = time.time()
    made = [ids.new() for _ in range(3 * AT_ONCE)]
    assert len(set(made)) == len(made)
    assert [one[:14] for one in made] == sorted(one[:14] for one in made)
    assert {len(one) for one in made} == {30}
    assert set("".join(one.removeprefix("req_") for one in made)) <= set(BASE32)
    ms = 0
    for letter in made[0].removeprefix("req_")[:10]:
        ms = ms * 32 + BASE32.index(letter)
    assert before * 1000 - 1 <= ms <= time.time() * 1000 + 1


def test_every_random_character_takes_every_value() -> None:
    made = [new_id()[-16:] for _ in range(5000)]
    assert all({one[place] for one in made} == set(BASE32) for place in range(16))


def test_a_forked_process_draws_its_own() -> None:
    ids = Ids()
    ids.new()
    read, write = os.pipe()
    if not (child := os.fork()):
        os.write(write, "".join(ids.new()[-16:] for _ in range(8)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(read, 1024).decode()
    os.close(read), os.close(write)
    assert not {theirs[at : at + 16] for at in range(0, len(theirs), 16)} & {ids.new()[-16:] for _ in range(8)}
