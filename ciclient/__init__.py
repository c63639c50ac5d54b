"""The client of a ciworker: packs a working tree, submits it, shows what becomes of it.

It shares nothing with the worker but the wire: HTTP under `/api/v1` and the events of a job.
"""
