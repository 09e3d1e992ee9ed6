"""`python -m tests.harness`."""

from tests.harness.commands import main

if __name__ == "__main__":
    main(prog_name="python -m tests.harness")
