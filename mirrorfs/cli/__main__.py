"""`python -m mirrorfs.cli`: the same as the command `mirrorfs`."""

from mirrorfs.cli.main import main

if __name__ == "__main__":
    main(prog_name="mirrorfs")
