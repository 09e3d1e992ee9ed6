"""`mount.mirrorfs`: what mount(8) calls for `mount -t mirrorfs` and for a line in /etc/fstab."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

import click

from mirrorfs.cli import mount
from mirrorfs.cli.errors import Failure, shown_errors
from mirrorfs.cli.main import main as mirrorfs
from mirrorfs.cli.setting import Setting, TakesEffect
from mirrorfs.output import escape_tracebacks

# mount(8), "EXIT STATUS".
_WRONG_USAGE, _INTERRUPTED, _NOT_MOUNTED = 1, 8, 32
# Words of /etc/fstab that are for mount(8) and systemd, not for a file system (mount(8), systemd.mount(5)).
_NOT_OURS = frozenset(
    ("defaults", "auto", "noauto", "user", "nouser", "users", "owner", "group", "_netdev", "nofail", "rw", "async")
)
_COMMENTS = ("x-", "X-", "comment=")
# Given by the command itself, or without a meaning here.
_NOT_OPTIONS = frozenset(("foreground", "options", "show-settings", "mountpoint", "help"))


@click.command("mount.mirrorfs", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("source", metavar="DATASTORE")
@click.argument("mountpoint")
@click.option("-o", "options", multiple=True, metavar="OPTIONS", help="Options of mount(8) and of 'mirrorfs mount'.")
@click.option("-f", "fake", is_flag=True, help="Check the options, mount nothing.")
@click.option("-s", "sloppy", is_flag=True, help="Accepted, as mount(8) gives it.")
@click.option("-n", "no_mtab", is_flag=True, help="Accepted: there is no mtab.")
@click.option("-v", "verbose", is_flag=True, help="Accepted.")
@click.option("-t", "type_", metavar="TYPE", help="Accepted: mirrorfs, or fuse.mirrorfs.")
def helper(
    source: str,
    mountpoint: str,
    options: tuple[str, ...],
    fake: bool,
    sloppy: bool,
    no_mtab: bool,
    verbose: bool,
    type_: str | None,
) -> None:
    """Mount DATASTORE, a path or the name of its settings file, on MOUNTPOINT, which usually is the same directory.

    Options of 'mirrorfs mount' are written without dashes: to=s3://backups/store1,parallel=16,require-store. Those of
    the settings file need not be repeated.

    \b
    Example, in /etc/fstab:
      store1  /mnt/datastore/store1  mirrorfs  _netdev,nofail  0  0
    """
    del sloppy, no_mtab, verbose, type_
    arguments = mount_arguments(source, mountpoint, [word for group in options for word in group.split(",") if word])
    if fake:
        return
    mirrorfs.main(args=arguments, prog_name="mirrorfs", standalone_mode=False, auto_envvar_prefix="MIRRORFS")


def mount_arguments(source: str, mountpoint: str, words: Iterable[str]) -> Sequence[str]:
    """Make the arguments of `mirrorfs` of what mount(8) gives. Raises Failure for what cannot be done."""
    arguments = ["mount", source, "--mountpoint", mountpoint]
    for word in words:
        arguments += _argument(word)
    return arguments


def _argument(word: str) -> list[str]:
    if word == "remount":
        raise Failure(
            "mirrorfs cannot be remounted: to have changed settings hold, run 'systemctl reload' for its unit or send "
            "SIGHUP to its process; for other mount options, unmount and mount it"
        )
    if word == "ro":
        raise Failure("mirrorfs cannot be mounted read-only: PBS writes to its datastores")
    if word in _NOT_OURS or word.startswith(_COMMENTS):
        return []
    name, equals, value = word.partition("=")
    option = _options().get(name)
    if isinstance(option, Setting) and option.takes_effect is TakesEffect.ONCE:
        raise Failure(
            f"{name} is for one start only, and what stands in /etc/fstab holds at every start: give --{name} once to "
            "'mirrorfs mount'"
        )
    if option is None:
        # One of the kernel's or of libfuse's, such as noatime.
        return ["--options", word]
    if option.is_flag:
        if equals:
            raise Failure(f"the mount option {name} takes no value: write it alone")
        return [f"--{name}"]
    if not equals:
        raise Failure(f"the mount option {name} needs a value: {name}=...")
    return [f"--{name}", value]


def _options() -> dict[str, click.Option]:
    return {
        declared.removeprefix("--"): option
        for option in mount.command.params
        if isinstance(option, click.Option)
        for declared in option.opts
        if declared.startswith("--") and declared.removeprefix("--") not in _NOT_OPTIONS
    }


def main() -> None:
    """Run it as a command; the exit codes are those of mount(8): 0 mounted, 1 wrong usage, 32 not mounted."""
    escape_tracebacks()
    try:
        with shown_errors():
            helper.main(standalone_mode=False)
    except click.Abort:
        sys.exit(_INTERRUPTED)
    except Failure as error:
        error.show()
        sys.exit(_NOT_MOUNTED)
    except click.ClickException as error:
        error.show()
        sys.exit(_WRONG_USAGE)
