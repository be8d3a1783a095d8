"""One browser for all tests of this folder."""

from page_fixtures import browser, page, the_browser_is_no_part_of_the_daemon, url  # noqa: F401
