"""The commands of `edgetune fleet`."""
