"""The token that rooms show each other, made once by whichever process comes first."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from catena.kit.chassis import kept_token, service_token
from catena.kit.config import House


def test_whoever_sees_the_token_sees_all_of_it_while_many_processes_start(tmp_path: Path) -> None:
    """Each round is a home of its own, in which a reader watches and several rooms start at once."""
    for number in range(50):
        house = House(home=str(tmp_path / str(number)))
        (tmp_path / str(number) / "keys").mkdir(parents=True)
        path = tmp_path / str(number) / "keys" / "service.token"
        together = threading.Barrier(5)

        def first_sight(path: Path = path, together: threading.Barrier = together) -> str:
            together.wait()
            while not path.exists():
                pass
            return path.read_text()

        def start(house: House = house, together: threading.Barrier = together) -> str:
            together.wait()
            return service_token(house)

        with ThreadPoolExecutor(5) as pool:
            seen = pool.submit(first_sight)
            told = {future.result() for future in [pool.submit(start) for _ in range(4)]}
        assert told == {seen.result()} == {kept_token(house)}
        assert len(seen.result()) > 40
        assert [file.name for file in path.parent.iterdir()] == ["service.token"]
        assert path.stat().st_mode & 0o777 == 0o600
