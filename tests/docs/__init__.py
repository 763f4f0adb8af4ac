"""The documentation: its links, its names, its site."""
