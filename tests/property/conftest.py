"""One profile for all property tests: repeatable, and without deadlines, since machines differ."""

from hypothesis import settings

settings.register_profile("sieve-edge", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("sieve-edge")
