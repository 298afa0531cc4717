"""What the drills under ``tests/integration`` share: the table of what is expected, and the means to break things and to check sums."""
