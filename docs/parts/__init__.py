"""What `make docs` writes, a module each, and what the tests of the pages read."""
