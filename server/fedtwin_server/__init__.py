"""The coordinator. It sees signed updates, never observations."""
