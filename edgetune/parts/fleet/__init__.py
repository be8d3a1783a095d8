"""A fleet: devices that learn together in rounds, which are files. No row leaves its device."""
