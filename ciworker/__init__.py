"""A self-hosted CI worker: runs the tests of a working tree in a clean container."""

__version__ = "0.1.0"
