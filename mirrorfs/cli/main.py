"""The entry point `mirrorfs`: finds the module of a command when it is called."""

from __future__ import annotations

import importlib

import click

from mirrorfs.cli.errors import shown_errors
from mirrorfs.output import escape_tracebacks, say
from mirrorfs.versions import versions

_COMMANDS = (
    "config",
    "reload",
    "mount",
    "umount",
    "status",
    "log",
    "wait",
    "reconcile",
    "retention",
    "metrics",
    "notify",
    "web",
    "snapshots",
    "restore",
    "verify",
    "heal",
    "replay",
    "drill",
    "handover",
    "takeback",
    "install",
    "uninstall",
    "doctor",
)


class _Commands(click.Group):
    """Imports only the command that is called: `umount` need not wait for boto3."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"mirrorfs.cli.{cmd_name}").command
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        escape_tracebacks()
        with shown_errors():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        with shown_errors():
            return super().invoke(ctx)


def _say_versions(context: click.Context, _: click.Parameter, is_asked: bool) -> None:
    if is_asked:
        known = versions()
        say(f"mirrorfs {known.pop('mirrorfs')}, commit {known.pop('commit')}")
        say(", ".join(f"{name} {version}" for name, version in known.items()))
        context.exit()


@click.command(
    cls=_Commands,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "auto_envvar_prefix": "MIRRORFS",
        "show_default": True,
        "max_content_width": 100,
    },
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_say_versions,
    help="Show which mirrorfs this is, and the versions of what matters to it.",
)
def main() -> None:
    """Mirror a Proxmox Backup Server datastore to S3-compatible object storage, continuously.

    mirrorfs mounts itself over the datastore as a pass-through filesystem: backups go on as before,
    and what they write is sent to the bucket in the background, in the layout of PBS 4's own S3 datastores.

    \b
    Mirror a datastore:      mirrorfs mount /mnt/datastore/store1 --to s3://bucket/store1
    See how far it is:       mirrorfs status /mnt/datastore/store1
    Watch it in a browser:   mirrorfs web /mnt/datastore/store1
    What the bucket holds:   mirrorfs snapshots s3://bucket/store1
    Whether it is good:      mirrorfs verify s3://bucket/store1
    Bring lost chunks back:  mirrorfs heal /mnt/datastore/store1
    Get it back:             mirrorfs restore s3://bucket/store1 /mnt/datastore/new
    Prove that one could:    mirrorfs drill s3://bucket/store1
    Have a PBS 4 open it:    mirrorfs handover s3://bucket/store1
    Make it a service:       mirrorfs install store1

    Credentials come from boto3's usual chain (~/.aws/credentials, AWS_ACCESS_KEY_ID, ...). Each option may
    also be set in the environment: MIRRORFS_MOUNT_ENDPOINT_URL for 'mount --endpoint-url', and so on.

    Exit codes: 0 done, 1 it could not be done (the reason is on standard error), 2 wrong usage.
    """
