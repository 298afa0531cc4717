"""What ``pppml bench`` computes: the parts of a round, timed by their public interfaces on this machine."""
