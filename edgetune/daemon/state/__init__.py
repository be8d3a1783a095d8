"""What the daemon keeps on disk: the database, uploads and adapters."""
