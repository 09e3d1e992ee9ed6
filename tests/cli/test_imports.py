"""What a command of a mount imports: `wait` in a script is run again and again, and has nothing to do but to ask."""

from __future__ import annotations

import json
import subprocess
import sys

_LONG_TO_IMPORT = {"boto3", "lmdb", "prometheus_client", "pyfuse3", "trio"}


def test_commands_that_only_ask_are_soon_imported() -> None:
    modules = ", ".join(f"mirrorfs.cli.{command}" for command in ("umount", "wait", "status", "reconcile", "retention"))
    program = f"import json, sys, {modules}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-P", "-c", program], check=True, capture_output=True, text=True)
    assert _LONG_TO_IMPORT.isdisjoint(json.loads(done.stdout))
