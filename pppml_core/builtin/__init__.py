"""What comes with the core, offered through the same hooks as any plugin and reached by name only."""
