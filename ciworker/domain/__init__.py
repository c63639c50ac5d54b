"""What is true about jobs and containers, as pure functions of values: no I/O, no clock."""
