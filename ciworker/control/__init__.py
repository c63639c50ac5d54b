"""Makes what is wanted and what is agree: one queue of keys, one loop, one decision."""
