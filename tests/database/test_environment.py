"""An environment grows while it is used, and no error of LMDB gets out of it as LMDB's."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest

from mirrorfs.database.environment import Environment, Transaction, _MapUse
from mirrorfs.database.errors import DatabaseCorrupt, DatabaseError

_SMALL_MAP = 128 * 1024
_WRITES = 60
_THREADS = 4


def small_environment(directory: Path, *, durable: bool = False) -> Environment:
    return Environment(
        str(directory), databases=(b"numbers",), format_version=1, durable=durable, initial_map_size=_SMALL_MAP
    )


def test_it_grows_while_threads_read_and_sync(tmp_path: Path) -> None:
    environment = small_environment(tmp_path)
    numbers = environment.databases[b"numbers"]
    written = 0
    finished = threading.Event()
    failures: list[BaseException] = []

    def repeat(work: Callable[[], None]) -> None:
        try:
            while not finished.wait(0.001):
                work()
        except BaseException as error:
            failures.append(error)
            raise

    def read() -> None:
        before = written
        count = environment.view(lambda transaction: int(transaction.stat(numbers)["entries"]))
        assert count >= before

    def scan() -> None:
        def sums(transaction: Transaction) -> None:
            assert all(key == value[:8] for key, value in transaction.cursor(db=numbers))

        environment.view(sums)

    threads = [threading.Thread(target=repeat, args=(work,)) for work in (read, scan, environment.sync)]
    for thread in threads:
        thread.start()
    for number in range(_WRITES):
        key = number.to_bytes(8, "big")

        def put(transaction: Transaction, key: bytes = key) -> None:
            transaction.put(key, key + bytes(100_000), db=numbers)

        environment.update(put)
        written = number + 1
    finished.set()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert failures == []
    assert environment.entries(b"numbers") == _WRITES
    environment.close()


def test_whoever_wants_to_grow_goes_before_new_users() -> None:
    use = _MapUse()
    order: list[str] = []

    def grow() -> None:
        with use.alone():
            order.append("grown")

    def come_later() -> None:
        with use.shared():
            order.append("used")

    grower, newcomer = threading.Thread(target=grow), threading.Thread(target=come_later)
    with use.shared():
        grower.start()
        while use._waiting == 0:
            grower.join(0.001)
        newcomer.start()
        newcomer.join(0.2)
        with use.shared():
            order.append("used again")
    grower.join(10)
    newcomer.join(10)
    assert order == ["used again", "grown", "used"]


def test_writers_that_find_the_map_full_at_once_all_get_through(tmp_path: Path) -> None:
    environment = small_environment(tmp_path)
    numbers = environment.databases[b"numbers"]

    def write(first: int) -> None:
        for number in range(first, 200, _THREADS):
            key = number.to_bytes(8, "big")

            def put(transaction: Transaction, key: bytes = key) -> None:
                transaction.put(key, bytes(10_000), db=numbers)

            environment.update(put)

    threads = [threading.Thread(target=write, args=(first,)) for first in range(_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert environment.entries(b"numbers") == 200
    environment.close()


def test_a_reader_with_a_smaller_map_follows_the_writer(tmp_path: Path) -> None:
    environment = small_environment(tmp_path)
    program = f"""
import sys
from mirrorfs.database.environment import Environment
environment = Environment(
    sys.argv[1], databases=(b"numbers",), format_version=1, read_only=True, initial_map_size={_SMALL_MAP}
)
for line in sys.stdin:
    print(environment.entries(b"numbers"), flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        for expected in range(60):
            print(file=reader.stdin, flush=True)
            assert int(reader.stdout.readline()) == expected

            def put(transaction: Transaction, number: int = expected) -> None:
                transaction.put(b"%d" % number, bytes(20_000), db=environment.databases[b"numbers"])

            environment.update(put)
        reader.stdin.close()
    environment.close()


def test_failed_work_leaves_nothing(tmp_path: Path) -> None:
    environment = small_environment(tmp_path)

    def fail(transaction: Transaction) -> None:
        transaction.put(b"1", b"1", db=environment.databases[b"numbers"])
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        environment.update(fail)
    assert environment.entries(b"numbers") == 0
    environment.close()


@pytest.mark.parametrize("operation", ["view", "update"])
@pytest.mark.parametrize(
    ("error", "expected"), [(lmdb.CorruptedError, DatabaseCorrupt), (lmdb.ReadersFullError, DatabaseError)]
)
def test_errors_of_lmdb_are_translated(
    tmp_path: Path, operation: str, error: type[lmdb.Error], expected: type[DatabaseError]
) -> None:
    environment = small_environment(tmp_path)

    def fail(_: Transaction) -> None:
        raise error("as LMDB says it")

    with pytest.raises(expected, match="as LMDB says it"):
        getattr(environment, operation)(fail)
    environment.close()


class Failing:
    """LMDB's environment, with operations that fail."""

    def __init__(self, environment: lmdb.Environment, *operations: str) -> None:
        self._environment = environment
        self._operations = operations

    def __getattr__(self, name: str) -> object:
        if name in self._operations:
            return self._fail
        return getattr(self._environment, name)

    @staticmethod
    def _fail(*_: object, **__: object) -> None:
        raise lmdb.PanicError("as LMDB says it")


@pytest.mark.parametrize("operation", ["set_mapsize", "info", "begin", "sync", "reader_check"])
def test_no_operation_fails_in_the_words_of_lmdb(tmp_path: Path, operation: str) -> None:
    environment = small_environment(tmp_path)
    sound = environment._environment
    environment._environment = Failing(sound, operation)  # type: ignore[assignment]

    def fill(transaction: Transaction) -> None:
        transaction.put(b"1", bytes(4 * _SMALL_MAP), db=environment.databases[b"numbers"])

    def change_everything() -> None:
        environment.update(fill)
        environment.sync()
        environment.clear_dead_readers()

    with pytest.raises(DatabaseError, match="as LMDB says it"):
        change_everything()
    environment._environment = sound
    change_everything()
    environment.close()


def test_reopening_waits_for_those_who_use_it_and_keeps_what_is_stored(tmp_path: Path) -> None:
    environment = small_environment(tmp_path)
    environment.update(lambda transaction: transaction.put(b"1", b"1", db=environment.databases[b"numbers"]))
    inside, leave = threading.Event(), threading.Event()

    def linger(transaction: Transaction) -> bytes | None:
        inside.set()
        assert leave.wait(10)
        return transaction.get(b"1", db=environment.databases[b"numbers"])

    found: list[bytes | None] = []
    reader = threading.Thread(target=lambda: found.append(environment.view(linger)))
    reopener = threading.Thread(target=environment.reopen)
    reader.start()
    assert inside.wait(10)
    reopener.start()
    reopener.join(0.2)
    assert reopener.is_alive()
    leave.set()
    reader.join(10)
    reopener.join(10)
    assert found == [b"1"]
    assert environment.entries(b"numbers") == 1
    environment.close()


def test_what_cannot_be_reopened_fails_until_it_can(tmp_path: Path) -> None:
    directory, aside = tmp_path / "database", tmp_path / "aside"
    environment = small_environment(directory)
    environment.update(lambda transaction: transaction.put(b"1", b"1", db=environment.databases[b"numbers"]))
    directory.rename(aside)
    directory.write_bytes(b"")
    with pytest.raises(DatabaseError, match="cannot open"):
        environment.reopen()
    with pytest.raises(DatabaseError):
        environment.entries(b"numbers")
    directory.unlink()
    aside.rename(directory)
    environment.reopen()
    assert environment.entries(b"numbers") == 1
    environment.close()


def test_a_sound_file_that_is_shorter_than_lmdb_may_use_is_opened(tmp_path: Path) -> None:
    environment = Environment(str(tmp_path), databases=(b"numbers",), format_version=1)
    environment.update(lambda transaction: transaction.put(b"1", b"1", db=environment.databases[b"numbers"]))
    # Pages that one transaction takes and gives back are never written.
    with lmdb_transaction(environment) as transaction:
        numbers = environment.databases[b"numbers"]
        for number in range(100):
            transaction.put(b"x%d" % number, bytes(9000), db=numbers)
        for number in range(100):
            transaction.delete(b"x%d" % number, db=numbers)
    environment.close()
    needed = last_page(tmp_path) * 4096 + 4096
    assert (tmp_path / "data.mdb").stat().st_size < needed, "this LMDB leaves no such gap: the test says nothing"
    environment = small_environment(tmp_path)
    assert environment.entries(b"numbers") == 1
    environment.close()


def lmdb_transaction(environment: Environment) -> Transaction:
    return environment._environment.begin(write=True)


def last_page(directory: Path) -> int:
    with lmdb.open(str(directory), readonly=True) as environment:
        return int(environment.info()["last_pgno"])
