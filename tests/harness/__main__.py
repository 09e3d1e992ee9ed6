"""`python -m tests.harness`."""

from tests.harness.commands import main
from tests.harness.run_command import command as run

main.add_command(run)

if __name__ == "__main__":
    main(prog_name="python -m tests.harness")
