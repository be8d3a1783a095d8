"""Rounds in a folder that all devices see, carried by any sync, a shared disk or a stick: nothing else is sent."""
