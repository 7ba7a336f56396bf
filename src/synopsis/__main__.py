"""``python -m synopsis``: the same command as ``synopsis``."""

from synopsis.cli import main

main()
