"""`mirrorfs reload`."""

from __future__ import annotations

import click

from mirrorfs.cli.errors import Failure, require_root
from mirrorfs.cli.mounted import locate, require_serving
from mirrorfs.cli.settings_file import DATASTORE
from mirrorfs.output import say
from mirrorfs.supervision.registry import find, state_directory_of
from mirrorfs.supervision.reload_request import NoAnswer, ask_to_reload

_ANSWER_SECONDS = 90.0


@click.command("reload")
@click.argument("datastore", type=DATASTORE)
def command(datastore: str) -> None:
    """Have the mount of DATASTORE read its settings again and take what can change; says what cannot.

    The mount stays, and PBS notices nothing. Limits hold at once; for all else the uploader begins anew. The log is
    opened again too, as for logrotate. SIGHUP does the same, without an answer.

    \b
    Example:
      mirrorfs reload store1

    Exit codes: 0 all that has changed holds now; 1 some of it waits for the next mount, or the settings stay as they
    are (the reason is on standard error); 2 wrong usage.
    """
    require_root("have settings read again")
    path = locate(datastore)
    require_serving(path)
    mount = find(path)
    if mount is None:
        raise Failure(f"the mount on {path} is not noted in /run/mirrorfs: send SIGHUP to its process")
    try:
        outcome = ask_to_reload(mount, _ANSWER_SECONDS)
    except NoAnswer:
        raise Failure(
            f"the mount on {path} has not said what came of it: see {state_directory_of(path).log_file}"
        ) from None
    except OSError as error:
        raise Failure(f"cannot ask the mount on {path}: {error}") from error
    if outcome.error is not None:
        raise Failure(f"the settings stay as they are: {outcome.error}")
    found = outcome.changes
    say(*(f"{key}: holds now" for key in found.at_once))
    say(*(f"{key}: holds now, the uploader has begun anew" for key in found.anew))
    if not (found.at_once or found.anew or found.wait):
        say("nothing has changed")
    if found.wait:
        waiting = ", ".join(found.wait)
        raise Failure(f"{waiting} cannot change while it is mounted: unmount and mount again for that")
