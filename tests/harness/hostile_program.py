"""What a hostile local user does, as a program of its own that needs nothing but Python: SEED, in a directory of his.

Prints one line of JSON when it holds what it has got, and goes on holding it until its standard input is closed.
"""

import json
import os
import random
import resource
import socket
import sys
from collections.abc import Callable
from functools import partial

_MOST_HELD = 4000
_DEPTH = 60
_PARTS = (
    b"\x1b[2J\x1b]0;owned\x07",
    b"\n2026-01-01 00:00:00,000 mount INFO all is well\n",
    b"\r\x08\x08",
    b"\x7f",
    "\u202egnp.exe\u2066".encode(),
    "\u2028\u0085".encode(),
    b"\xff\xfe\xed\xa0\x80",
    b"[red]x[/red] :smile:",
    b"%s%n{0}",
    b"-rf",
    b" ",
    b"'\"`$(id)",
)
_NAMES_OF_PBS = (b"index.json.blob", b"owner", b"notes", b".protected", b"vm", b"ns", b".chunks", b"root.pxar")
_OUTSIDE = (b"..", b"../vm", b"../ct", b"../host", b"../ns", b"../.chunks", b"../.chunks/0000")


class User:
    """Does one thing after the other; what the system refuses is no surprise."""

    def __init__(self, choice: random.Random) -> None:
        self._choice = choice
        self.held: list[int] = []
        self.made = 0
        self.refused = 0
        self.reached: list[str] = []
        """What he could do to files that are not his."""

    def act(self) -> None:
        """Do everything there is, in some order, several times."""
        acts = [self._names, self._deep, self._links, self._pipes, self._sparse, self._storm, self._outside] * 2
        self._choice.shuffle(acts)
        for act in acts:
            try:
                act()
            except OSError:
                self.refused += 1
        self._hold()

    def _name(self) -> bytes:
        if self._choice.random() < 0.3:
            return self._choice.choice(_NAMES_OF_PBS)
        parts = self._choice.choices(_PARTS, k=self._choice.randint(1, 4))
        return (b"".join(parts) + b"%d" % self._choice.randrange(1000)).replace(b"/", b"")[:255]

    def _make(self, name: bytes) -> None:
        # It may be a pipe of his by that name, which nobody reads.
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_NONBLOCK, 0o666))
        self.made += 1

    def _names(self) -> None:
        for _ in range(20):
            self._make(self._name())

    def _deep(self) -> None:
        name = self._name()
        here = os.open(b".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            for _ in range(self._choice.randint(1, _DEPTH)):
                os.mkdir(name, dir_fd=here)
                inside = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
                os.close(here)
                here = inside
                self.made += 1
        finally:
            os.close(here)

    def _links(self) -> None:
        for target in (b"/etc/shadow", b"../.chunks", b".", b"../vm", self._name(), b"/dev/zero"):
            os.symlink(target, self._name())
            self.made += 1
        own = self._name()
        self._make(own)
        os.link(own, self._name())

    def _pipes(self) -> None:
        os.mkfifo(self._name())
        self.made += 1
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(self._name())
            self.made += 1

    def _sparse(self) -> None:
        name = self._name()
        self._make(name)
        os.truncate(name, 1 << 40)
        os.chmod(name, 0o6777)

    def _storm(self) -> None:
        first, second = self._name(), self._name()
        self._make(first)
        for _ in range(60):
            os.rename(first, second)
            os.rename(second, first)
            os.utime(first)
        if self._choice.random() < 0.5:
            os.chmod(first, 0)

    def _outside(self) -> None:
        """Try what must be refused."""
        for path in _OUTSIDE:
            for what, attempt in self._attempts(path):
                try:
                    attempt()
                except OSError:
                    self.refused += 1
                else:
                    self.reached.append(f"{what} {path.decode()}")

    def _attempts(self, path: bytes) -> list[tuple[str, Callable[[], object]]]:
        return [
            ("mkdir", partial(os.mkdir, path + b"/hostile")),
            ("create", partial(self._make, path + b"/hostile")),
            ("rename", partial(os.rename, path, path + b"-hostile")),
            ("chmod", partial(os.chmod, path, 0o777)),
            ("rmdir", partial(os.rmdir, path)),
            ("xattr", partial(os.setxattr, path, b"user.hostile", b"1")),
        ]

    def _hold(self) -> None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        try:
            for number in range(_MOST_HELD):
                self._hold_one(number)
        except OSError:
            self.refused += 1

    def _hold_one(self, number: int) -> None:
        match self._choice.randrange(4):
            case 0:
                self.held.append(os.open(b".", os.O_RDONLY | os.O_DIRECTORY))
                if number < 100:
                    os.listdir(self.held[-1])
            case 1:
                self.held.append(os.open(b".", os.O_PATH))
            case _:
                name = b"held-%d" % number
                self.held.append(os.open(name, os.O_CREAT | os.O_RDWR, 0o600))
                self.made += 1
                if self._choice.random() < 0.5:
                    os.unlink(name)


def main() -> None:
    """Act, tell, and hold."""
    user = User(random.Random(int(sys.argv[1])))
    user.act()
    told = {"made": user.made, "held": len(user.held), "refused": user.refused, "reached": user.reached}
    print(json.dumps(told), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
