"""The daemon's data on disk: the database, uploads and adapters."""
