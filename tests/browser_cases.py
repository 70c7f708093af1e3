"""Chromium for the tests of pages."""


def load(browser, address):
    """Load a page, at most three times.

    ChromeDriver can report "timeout: aborted by navigation" at once, while Chromium still replaces the previous page.
    """
    from selenium.common.exceptions import TimeoutException  # not every test of a page needs it

    for _ in range(2):
        try:
            return browser.get(address)
        except TimeoutException:
            pass
    browser.get(address)
