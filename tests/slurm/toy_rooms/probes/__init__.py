"""Stands in for the room of the same name: its commands and files, none of its work."""
