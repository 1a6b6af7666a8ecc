"""``python -m bngen``: the command, where its script is not on the path."""

from bngen.cli.main import run

if __name__ == "__main__":
    run()
