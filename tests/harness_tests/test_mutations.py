"""Each mutation breaks the product where it says, is told on standard error, and never comes to nothing unnoticed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import mutation
from tests.harness.mutation import COUNT_IN_SMALL_PARTS, MUTATIONS, VARIATIONS, environment_of, is_active

_REPOSITORY = Path(__file__).parents[2]
_DIRECTORY = _REPOSITORY / "tests" / "harness" / "mutations"

_UNCONFIRMED_PUT = """
import trio
import mirrorfs.replication.publishing.publication  # what is mutated there, too, becomes active
from mirrorfs.objectstore.answers import PutReceipt
from mirrorfs.objectstore.errors import ConfirmationFailed, ObjectMissing
from mirrorfs.objectstore.store import ObjectStore

class Forgetful:
    place = "nowhere"
    def put_object(self, *arguments, **more):
        return PutReceipt(etag="of something else", crc32c=None)
    def head_object(self, key):
        return None
    def get_object(self, key, *limits):
        raise ObjectMissing("read", "there is none")

async def main():
    try:
        await ObjectStore(Forgetful()).put("key", b"bytes")
    except ConfirmationFailed:
        print("held")
    else:
        print("broken")

trio.run(main)
"""

_REPLICATION = """
import sys
from pathlib import Path
import trio
from tests.replication.datastore import FIRST, Datastore, chunk_key, chunk_path, digest_of
from tests.replication.world import World

base = Path(sys.argv[1])
(base / "datastore").mkdir()
datastore = Datastore(base / "datastore")
datastore.create()
world = World(datastore, base / "state")
datastore.back_up(FIRST, ["one", *(f"chunk {number}" for number in range(15))])
"""

_EARLY_MANIFEST = (
    _REPLICATION
    + """
trio.run(world.converge)
print("broken" if world.store.broken else "held")
"""
)

_CORRUPT_CHUNK = (
    _REPLICATION
    + """
async def main():
    async with world.running() as running:
        await running.settled()
        assert chunk_key("one") in world.store.objects
        datastore.quarantine_chunk("one")
        running.changed(chunk_path(digest_of("one")))
        await running.settled()

trio.run(main)
print("held" if chunk_key("one") in world.store.objects else "broken")
"""
)

_JOURNAL = """
import sys
from mirrorfs.journal.journal import JournalReader, JournalWriter

writer = JournalWriter(sys.argv[1])
names = [b"vm/%d/owner" % number for number in range(30)]
for name in names[:15]:
    writer.append(name)
writer.append_all(names[15:])
writer.append(b"")
writer.close()
recorded = [record.path for record in JournalReader(sys.argv[1]).read(0, 100)]
assert b"" in recorded
print("held" if len(recorded) == 31 else "broken")
"""

_DURABILITY = """
import os, sys
import trio
from mirrorfs.filesystem.interception import Durability

class Journal:
    synced = False
    def sync(self):
        self.synced = True

journal = Journal()
trio.run(Durability(os.open(sys.argv[1], os.O_RDONLY), journal).reach)
print("held" if journal.synced else "broken")
"""

_TAKEN_OVER = """
import trio
from mirrorfs.replication.ownership.claim import Claim
from mirrorfs.replication.ownership.watch import OwnershipWatch

class State:
    def view(self, question):
        return None

async def main():
    watch = OwnershipWatch(None, State(), lost=print, stale=print)
    claim = Claim("id", "host", "machine", "/datastore", "epoch")
    watch.begin(claim)
    verdict = watch._judge(Claim("id", "other", "machine", "/datastore", "epoch"), None)
    print("broken" if verdict.lost is None else "held")

trio.run(main)
"""

_TREE = """
import trio
from mirrorfs.replication.work.drain import Drain

class Over(Exception):
    pass

class Nothing:
    def __getattr__(self, name):
        raise Over

try:
    trio.run(Drain.handle_tree, Nothing())
except Over:
    print("held")
except ValueError:
    print("broken")
"""

_SCRIPTS = {
    "skip-confirmation": _UNCONFIRMED_PUT,
    "publish-early": _EARLY_MANIFEST,
    "delete-without-reference-check": _CORRUPT_CHUNK,
    "drop-journal-record": _JOURNAL,
    "no-syncfs": _DURABILITY,
    "share-the-name": _TAKEN_OVER,
    "stumble": _TREE,
}


def run(script: str, directory: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, str(directory)],
        env={**os.environ, "PYTHONPATH": str(_REPOSITORY), **environment},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_breaks_what_holds_without_it(tmp_path: Path, name: str) -> None:
    for directory in ("whole", "mutated"):
        (tmp_path / directory).mkdir()
    whole = run(_SCRIPTS[name], tmp_path / "whole", {})
    assert whole.stdout == "held\n", whole.stderr
    assert not is_active(name, whole.stderr)
    mutated = run(_SCRIPTS[name], tmp_path / "mutated", environment_of(name))
    assert mutated.stdout == "broken\n", mutated.stderr
    assert is_active(name, mutated.stderr)


def test_the_names_are_those_that_the_mutated_process_knows() -> None:
    source = (_DIRECTORY / "sitecustomize.py").read_text()
    known = re.findall(r'^    "([a-z-]+)": \(', source, re.MULTILINE)
    assert known == [*MUTATIONS, *VARIATIONS]
    with pytest.raises(ValueError, match="no mutation other"):
        environment_of("other")


def test_a_variation_breaks_nothing(tmp_path: Path) -> None:
    done = run(_EARLY_MANIFEST, tmp_path, environment_of(COUNT_IN_SMALL_PARTS))
    assert done.stdout == "held\n", done.stderr
    assert is_active(COUNT_IN_SMALL_PARTS, done.stderr)


@pytest.mark.parametrize("name", [*MUTATIONS, *VARIATIONS])
@pytest.mark.parametrize("what", ["method", "module"])
def test_a_mutation_whose_target_has_gone_ends_every_process(tmp_path: Path, name: str, what: str) -> None:
    """Against a copy of the product in which the target is called otherwise."""
    shutil.copytree(_REPOSITORY / "mirrorfs", tmp_path / "mirrorfs", ignore=shutil.ignore_patterns("__pycache__"))
    source = (_DIRECTORY / "sitecustomize.py").read_text()
    entry = source[source.index(f'    "{name}": (') :]
    match = re.search(r'(?:"(mirrorfs[.a-z]*)"|_CHUNKS), "(\w+)", "(\w+)"', entry)
    assert match is not None
    module = tmp_path / ((match[1] or "mirrorfs.replication.publishing.chunks").replace(".", "/") + ".py")
    if what == "method":
        module.write_text(module.read_text().replace(f"def {match[3]}(", "def renamed("))
    else:
        module.rename(module.with_name("renamed.py"))
    environment = environment_of(name)
    environment["PYTHONPATH"] = environment["PYTHONPATH"].replace(str(_REPOSITORY) + os.pathsep, "")
    environment["PYTHONPATH"] = os.pathsep.join([str(_DIRECTORY), str(tmp_path)])
    done = run("print('went on')", tmp_path, environment)
    assert done.returncode == 70
    assert done.stdout == ""
    assert f"mutation {name} cannot be made: " in done.stderr


def test_an_unknown_mutation_ends_every_process(tmp_path: Path) -> None:
    environment = {**environment_of("no-syncfs"), "MIRRORFS_MUTATION": "other"}
    done = run("print('went on')", tmp_path, environment)
    assert (done.returncode, done.stdout) == (70, "")
    assert "mutation other cannot be made: it is none of skip-confirmation" in done.stderr


def test_without_the_variable_nothing_is_broken(tmp_path: Path) -> None:
    environment = environment_of("no-syncfs")
    del environment["MIRRORFS_MUTATION"]
    done = run(_DURABILITY, tmp_path, environment)
    assert (done.stdout, done.stderr) == ("held\n", "")
    assert mutation.MUTATIONS
