"""The fixtures of a daemon, for the tests of parts."""

from daemon_fixtures import client, http, model, running  # noqa: F401
