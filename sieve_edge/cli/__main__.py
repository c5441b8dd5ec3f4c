"""``python -m sieve_edge.cli`` is ``sieve-edge``."""

from sieve_edge.cli import main

main()
