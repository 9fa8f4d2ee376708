import multiprocessing
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from catena.kit.clock import uuid7


def test_ids_are_uuids_of_version_7_in_the_order_of_their_milliseconds() -> None:
    made = [uuid.UUID(uuid7()) for _ in range(1000)]
    assert {(one.version, one.variant) for one in made} == {(7, uuid.RFC_4122)}
    stamps = [one.int >> 80 for one in made]
    assert stamps == sorted(stamps)


def test_no_two_threads_make_the_same_id() -> None:
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: [uuid7()[-10:] for _ in range(2000)], range(8)))
    assert len({tail for several in made for tail in several}) == 16_000


def test_a_forked_process_draws_anew() -> None:
    uuid7()
    with multiprocessing.get_context("fork").Pool(1) as pool:
        theirs = pool.apply(_tails, (50,))
    assert not set(theirs) & set(_tails(50))


def _tails(count: int, make: Callable[[], str] = uuid7) -> list[str]:
    return [make()[-12:] for _ in range(count)]
