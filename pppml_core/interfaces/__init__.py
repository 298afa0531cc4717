"""One file a kind: what a component of that kind must do, written as a tutorial."""
