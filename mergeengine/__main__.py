"""``python -m mergeengine``."""

from mergeengine.cli import main

main()
